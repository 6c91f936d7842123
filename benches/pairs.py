#!/usr/bin/env python3
"""Pairs of measurements of CPU time that the load generator alone cannot make. Each pair is one
round of one run, and only ratios within a round are claimed.

    pairs.py --tailwater target/release/tailwater --load-generator PATH replay --collector COLLECTOR
    pairs.py --tailwater target/release/tailwater --load-generator PATH watched

`replay` compares spans per CPU second of `tailwater replay` with those of the running service,
which gets its requests from memory, on the same traffic. The file exporter of a Collector writes
the files. A ratio of 0.5 means that replay takes half as many spans per core as the service.

`watched` compares the CPU time per span of the service that nobody watches with that of the same
process while one terminal has `tailwater top`, one browser has the page, and one trial
(`tailwater try`) runs.

PATH is the load generator (`cargo bench --bench load_generator --no-run` prints its path),
COLLECTOR is the path that `tests/peer/build.sh` prints. Python 3.11, no packages.
"""

import argparse
import json
import os
import pty
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/real"))

from children import Children, free_ports, get, wait_until  # noqa: E402

# The policies of the load generator, which keep a tenth of its traffic.
POLICIES = """
[[policy]]
name = "errors"
type = "status_code"
status_codes = ["ERROR"]

[[policy]]
name = "slow"
type = "latency"
threshold_ms = 2000

[[policy]]
name = "premium"
type = "string_attribute"
key = "customer.tier"
values = ["premium"]

[[policy]]
name = "baseline"
type = "probabilistic"
sampling_percentage = 4.5
"""
# The policies of the trial. One of them is the same.
TRIED = """
[[policy]]
name = "errors"
type = "status_code"
status_codes = ["ERROR"]

[[policy]]
name = "very-slow"
type = "latency"
threshold_ms = 3000

[[policy]]
name = "baseline"
type = "probabilistic"
sampling_percentage = 9
"""
CONFIG = """
receiver.grpc.endpoint = "127.0.0.1:{grpc}"
receiver.http.endpoint = "127.0.0.1:{http}"
exporter.otlp.endpoint = "http://{sink}"
sampling.decision_wait = "5s"
sampling.decision_wait_after_root_received = "0s"
sampling.memory_limit_mib = 3000
telemetry = {{ endpoint = "127.0.0.1:{telemetry}", enable_lifecycle = true, log_level = "warn" }}
"""
WINDOW_S, SETTLE_S = 5, 3
# The page reloads itself this often.
PAGE_S = 2
FORMS = {
    "frames.proto": {"format": "proto"},
    "zstd-frames.proto": {"format": "proto", "compression": "zstd"},
    "lines.json": {"format": "json"},
}


class LoadGenerator:
    """A process of the load generator. It answers lines of its input with lines of JSON."""

    def __init__(self, binary: Path, *arguments: str) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [binary, *arguments], stdin=pipe, stdout=pipe, text=True
        )
        self.first = self.answer()

    def answer(self) -> dict:
        return json.loads(self.process.stdout.readline())

    def lap(self) -> dict:
        self.process.stdin.write("lap\n")
        self.process.stdin.flush()
        return self.answer()

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait(20)


@contextmanager
def load_generator(*arguments: object) -> Iterator[LoadGenerator]:
    one = LoadGenerator(*map(str, arguments))
    try:
        yield one
    finally:
        one.end()


def cpu_seconds(pid: int) -> float:
    times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")


class Loaded:
    """A running service and its load."""

    def __init__(
        self, told: argparse.Namespace, children: Children, sink: str, seconds: int
    ) -> None:
        ports = dict(zip(("grpc", "http", "telemetry"), free_ports(3), strict=True))
        config = children.folder / "tailwater.toml"
        config.write_text(CONFIG.format(sink=sink, **ports) + POLICIES)
        self.service = children.start("tailwater", told.tailwater, "run", "--config", config)
        self.address = f"http://127.0.0.1:{ports['telemetry']}"
        wait_until("ready", lambda: get(f"{self.address}/-/ready")[0] == 200, 30)
        options = (f"--target=127.0.0.1:{ports['grpc']}", f"--rate={told.rate}")
        limit = f"--max-seconds={seconds}"
        self.load = LoadGenerator(told.load_generator, "load", *options, limit)
        time.sleep(WINDOW_S + SETTLE_S)

    def measure(self, seconds: int) -> float:
        """CPU seconds per million spans."""
        self.load.lap()
        before = cpu_seconds(self.service.pid)
        time.sleep(seconds)
        lap = self.load.lap()
        used = cpu_seconds(self.service.pid) - before
        if lap["failed_requests"] or lap["spans"] == 0:
            sys.exit(f"the load failed: {lap}")
        return used / lap["spans"] * 1e6

    def end(self) -> None:
        self.load.end()
        self.service.terminate()
        self.service.wait(60)


def record(told: argparse.Namespace, folder: Path) -> None:
    """Has the Collector write the files, of `told.spans` spans."""
    with Children(folder) as children:
        (port,) = free_ports(1)
        exporters = {
            f"file/{name}": {"path": str(folder / name)} | form for name, form in FORMS.items()
        }
        made = {
            "receivers": {
                "otlp": {
                    "protocols": {
                        "grpc": {"endpoint": f"127.0.0.1:{port}", "max_recv_msg_size_mib": 64}
                    }
                }
            },
            "exporters": exporters,
            "service": {
                "telemetry": {"metrics": {"level": "none"}},
                "pipelines": {"traces": {"receivers": ["otlp"], "exporters": list(exporters)}},
            },
        }
        config = folder / "collector.yaml"
        config.write_text(json.dumps(made))
        collector = children.start("collector", told.collector, "--config", config)

        def ready() -> bool:
            return "Everything is ready" in (folder / "collector.log").read_text()

        wait_until("the Collector is ready", ready, 30)
        rate = 15_000
        options = (f"--target=127.0.0.1:{port}", f"--rate={rate}")
        with load_generator(told.load_generator, "load", *options) as load:
            load.lap()
            time.sleep(told.spans / rate)
            print(f"the Collector has written {load.lap()['spans']} spans", flush=True)
        collector.terminate()
        collector.wait(60)


def cpu_seconds_of_children() -> float:
    """The CPU time of the children that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def replayed(told: argparse.Namespace, folder: Path, name: str) -> float:
    """CPU seconds per million spans of `tailwater replay`."""
    before = cpu_seconds_of_children()
    command = [told.tailwater, "replay", "--format", "json", "--config", folder / "tailwater.toml"]
    done = subprocess.run([*command, folder / name], capture_output=True, check=True)
    used = cpu_seconds_of_children() - before
    read = json.loads(done.stdout)["input"]
    if read["skipped"] or read["decided_early"]:
        sys.exit(f"{name} is not read whole: {read}")
    return used / read["spans"] * 1e6


def summary(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def replay(told: argparse.Namespace, folder: Path) -> None:
    record(told, folder)
    ratios: dict[str, list[float]] = {name: [] for name in FORMS}
    print("CPU seconds per million spans; and spans per CPU second, replay over service")
    for number in range(1, told.rounds + 1):
        with Children(folder) as children, load_generator(told.load_generator, "sink") as sink:
            loaded = Loaded(told, children, sink.first["address"], told.seconds + 60)
            service = loaded.measure(told.seconds)
            loaded.end()
        row = [f"round {number}: service {service:.3f}"]
        for name in FORMS:
            used = replayed(told, folder, name)
            ratios[name].append(service / used)
            row.append(f"{name} {used:.3f} ({service / used:.2f})")
        print(", ".join(row), flush=True)
    for name, all_of_form in ratios.items():
        print(f"{name}: {summary(all_of_form)}")


@contextmanager
def watched(told: argparse.Namespace, children: Children, address: str) -> Iterator[None]:
    """One terminal, one page and one trial."""
    tried = children.folder / "tried.toml"
    tried.write_text(TRIED)
    ours, theirs = pty.openpty()
    top = subprocess.Popen(
        [told.tailwater, "top", "--address", address], stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    arguments = ("try", "--seconds=600", "--address", address, tried)
    trial = children.start("try", told.tailwater, *arguments)
    over = threading.Event()

    def show() -> None:
        # The terminal ends when `top` does.
        try:
            while os.read(ours, 65536):
                pass
        except OSError:
            pass

    def browse() -> None:
        while not over.wait(PAGE_S):
            get(f"{address}/")

    threads = [threading.Thread(target=show), threading.Thread(target=browse)]
    for thread in threads:
        thread.start()
    status = f"{address}/-/status"
    wait_until("the trial", lambda: json.loads(get(status)[1])["activity"]["trialRunning"], 10)
    time.sleep(WINDOW_S)
    try:
        yield
        still_running = top.poll() is None and trial.poll() is None
    finally:
        over.set()
        for child in (top, trial):
            child.terminate()
            child.wait(20)
        for thread in threads:
            thread.join()
        os.close(ours)
    if not still_running:
        sys.exit("top or try has ended")


def watch(told: argparse.Namespace, folder: Path) -> None:
    ratios = []
    lasts = told.rounds * (2 * told.seconds + 20) + 30
    with Children(folder) as children, load_generator(told.load_generator, "sink") as sink:
        loaded = Loaded(told, children, sink.first["address"], lasts)
        print("CPU seconds per million spans, and the second over the first")
        for number in range(1, told.rounds + 1):
            alone = loaded.measure(told.seconds)
            with watched(told, children, loaded.address):
                with_all = loaded.measure(told.seconds)
            time.sleep(1)
            ratios.append(with_all / alone)
            row = f"alone {alone:.3f}, watched {with_all:.3f} ({ratios[-1]:.3f})"
            print(f"round {number}: {row}", flush=True)
        loaded.end()
    print(f"watched over alone: {summary(ratios)}")


def main() -> None:
    as_it_stands = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_it_stands)
    parser.add_argument("--tailwater", type=Path, required=True)
    parser.add_argument("--load-generator", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=10, help="that each measurement takes")
    parser.add_argument("--rate", type=int, default=50_000, help="spans per second")
    commands = parser.add_subparsers(required=True)
    of_replay = commands.add_parser("replay")
    of_replay.add_argument("--collector", type=Path, required=True)
    of_replay.add_argument("--spans", type=int, default=300_000, help="in each file")
    of_replay.set_defaults(run=replay)
    commands.add_parser("watched").set_defaults(run=watch)
    told = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="tailwater-pairs-"))
    try:
        told.run(told, folder)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
