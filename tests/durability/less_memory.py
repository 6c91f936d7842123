"""Starts again with less memory than the last process held, while the backend is away."""

import argparse
import pathlib
import random
import signal
import sys
import tempfile
import threading
import time

import otlp
from service import Sender, Sink, Tailwater, at_rest, ledger, start_sink, verify

# Longer than a start waits for memory when nothing is left to deliver.
AWAY_SECONDS = 33
PADDING = "x" * 20_000
REQUESTS = 120


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("binary")
    options = parser.parse_args()
    chance = random.Random(1)
    sink = start_sink()
    Sink.away.set()
    with tempfile.TemporaryDirectory(prefix="tailwater-durability-") as folder:
        tailwater = Tailwater(options.binary, pathlib.Path(folder), "process", sink, wait="8s")
        tailwater.start()
        sender = Sender(tailwater.port, 1, threading.Event())
        acknowledged = []
        for number in range(REQUESTS):
            # The first half is in the export queue at the kill, the second in the window.
            if number == REQUESTS // 2:
                time.sleep(10)
            spans = [
                (f"{chance.getrandbits(128) | 1:032x}", f"{number + 1:04x}{n:012x}", False)
                for n in range(40)
            ]
            while not sender.post(otlp.request(spans, PADDING)):
                time.sleep(0.1)
            acknowledged += spans
        before = tailwater.metrics()
        tailwater.kill()
        config = tailwater.config.read_text()
        tailwater.config.write_text(config.replace("limit_mib = 512", "limit_mib = 48"))
        threading.Timer(AWAY_SECONDS, Sink.away.clear).start()
        # The pause between two attempts to deliver may be 30 s by then.
        ready = tailwater.start(within=AWAY_SECONDS + 60)
        metrics = at_rest(tailwater)
        tailwater.process.send_signal(signal.SIGTERM)
        code = tailwater.process.wait(60)
        _, lost, differently, _ = verify(acknowledged)
        off = ledger(metrics)
        mib = [before[name] / 2**20 for name in ("exporter_queue_bytes", "window_bytes")]
        print(
            f"{mib[0]:.0f} MiB in the export queue and {mib[1]:.0f} in the window, then a limit of "
            f"48 MiB: ready after {ready:.1f} s\n"
            f"acknowledged spans lost: {lost}, ledger: {off:+.0f}, exit code {code}"
        )
        if lost or differently or off or code or ready < AWAY_SECONDS:
            sys.exit((pathlib.Path(folder) / "log").read_text()[-3000:])


if __name__ == "__main__":
    main()
