"""Measures how long a start takes after a kill with a full window.

The load generator fills the window. The process is killed and started again, several times; each
start reads the window back before it is ready.
"""

import argparse
import pathlib
import statistics
import subprocess
import tempfile
import time

from service import Tailwater, start_sink

MEMORY_MIB = 8192
MAX_SIZE_MIB = 16384


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("binary")
    parser.add_argument(
        "load_generator",
        help="the executable that `cargo bench --bench load_generator --no-run` builds",
    )
    parser.add_argument("--rate", type=int, default=100_000, help="spans per second")
    parser.add_argument("--window", type=int, default=30, help="seconds of `decision_wait`")
    parser.add_argument("--starts", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tailwater-recovery-") as folder:
        tailwater = Tailwater(
            options.binary,
            pathlib.Path(folder),
            "process",
            start_sink(),
            # Longer than the load: nothing is decided before the kill.
            wait=f"{2 * options.window}s",
            max_size_mib=MAX_SIZE_MIB,
            memory_mib=MEMORY_MIB,
        )
        tailwater.start()
        load = [options.load_generator, "load", "--target", f"127.0.0.1:{tailwater.grpc}"]
        load += ["--rate", str(options.rate), "--max-seconds", str(options.window)]
        with subprocess.Popen(load, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as loading:
            loading.wait()
        metrics = tailwater.metrics()
        spans, disk = metrics["window_spans"], metrics["durability_bytes"]
        ready = []
        for _ in range(options.starts):
            tailwater.kill()
            ready.append(tailwater.start())
            now = tailwater.metrics()["window_spans"]
            if now != spans:
                raise SystemExit(f"{now:.0f} spans are back of {spans:.0f}")
        tailwater.kill()
        print(
            f"{spans:.0f} spans in the window, {metrics['window_bytes'] / 2**20:.0f} MiB, "
            f"{disk / 2**20:.0f} MiB on disk\nready after "
            f"{', '.join(f'{seconds:.2f}' for seconds in ready)} s, "
            f"median {statistics.median(ready):.2f} s"
        )


if __name__ == "__main__":
    main()
