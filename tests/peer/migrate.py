"""The move from a Collector's tail_sampling to Tailwater, as the page of the book describes it.

While traces keep coming, both decide in parallel; then Tailwater is restarted with the main tenant
as its backend; then the Collector is reloaded without its tail_sampling. Every trace with an error
must arrive whole at the main tenant, whatever was being restarted, and both must keep the same
traces while they run in parallel.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "real"))

from children import Children, TroubleError, free_ports, get, wait_until  # noqa: E402
from compare import arguments_of, exit_code, post, start_collector, stop  # noqa: E402
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service  # noqa: E402
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status  # noqa: E402
from sink import Sink  # noqa: E402

CONFIG = """\
receiver.grpc.endpoint = "127.0.0.1:{grpc}"
receiver.http.endpoint = "127.0.0.1:{http}"
telemetry.endpoint = "127.0.0.1:{telemetry}"
exporter.otlp.endpoint = "http://127.0.0.1:{backend}"
sampling.decision_wait = "1s"
sampling.decision_wait_after_root_received = "0s"

[[policy]]
name = "errors"
type = "status_code"
status_codes = ["ERROR"]
"""
TAIL_SAMPLING = {
    "decision_wait": "1s",
    "policies": [
        {"name": "errors", "type": "status_code", "status_code": {"status_codes": ["ERROR"]}}
    ],
}
PHASE_S = 3
# The root comes this long after its child, so that restarts fall between the spans of traces.
ROOT_S = 0.3


class Sender(threading.Thread):
    """Sends a trace of two spans every 20 ms, every other one with an error; never gives up one."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port, self.is_open = port, True
        self.errors: list[bytes] = []

    def run(self) -> None:
        waiting: list[tuple[float, bytes]] = []
        fails = False
        while self.is_open or waiting:
            now = time.monotonic()
            while waiting and waiting[0][0] <= now:
                self.send(waiting.pop(0)[1])
            if self.is_open:
                trace_id, fails = os.urandom(16), not fails
                child, root = os.urandom(8), os.urandom(8)
                self.send(request(trace_id, child, root, fails))
                waiting.append((time.monotonic() + ROOT_S, request(trace_id, root, b"", False)))
                if fails:
                    self.errors.append(trace_id)
            time.sleep(0.02)

    def send(self, body: bytes) -> None:
        give_up = time.monotonic() + 30
        while True:
            try:
                post(self.port, [body])
                return
            except (OSError, TroubleError):
                # The Collector is being reloaded: a sender sends again.
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.05)


def request(trace_id: bytes, span_id: bytes, parent: bytes, fails: bool) -> bytes:
    made = service.ExportTraceServiceRequest()
    now = time.time_ns()
    made.resource_spans.add().scope_spans.add().spans.add(
        trace_id=trace_id,
        span_id=span_id,
        parent_span_id=parent,
        kind=Span.SPAN_KIND_SERVER,
        start_time_unix_nano=now,
        end_time_unix_nano=now + 1,
        status=Status(code=Status.STATUS_CODE_ERROR if fails else Status.STATUS_CODE_OK),
    )
    return made.SerializeToString()


def collector_config(ports: dict[str, int], main: int, kept: Path, parallel: bool) -> str:
    def grpc(port: int) -> dict:
        return {
            "endpoint": f"127.0.0.1:{port}",
            "tls": {"insecure": True},
            "retry_on_failure": {"initial_interval": "100ms", "max_interval": "500ms"},
        }

    pipelines = {
        "traces/tailwater": {
            "receivers": ["otlp"],
            "processors": ["batch"],
            "exporters": ["otlp_grpc/tailwater"],
        }
    }
    if parallel:
        pipelines["traces/current"] = {
            "receivers": ["otlp"],
            "processors": ["tail_sampling", "batch"],
            "exporters": ["otlp_grpc/tempo", "file/kept"],
        }
    whole = {
        "receivers": {
            "otlp": {"protocols": {"http": {"endpoint": f"127.0.0.1:{ports['collector']}"}}}
        },
        "processors": {"batch": {"timeout": "100ms"}, "tail_sampling": TAIL_SAMPLING},
        "exporters": {
            "otlp_grpc/tempo": grpc(main),
            "otlp_grpc/tailwater": grpc(ports["grpc"]),
            "file/kept": {"path": str(kept), "flush_interval": "100ms"},
        },
        "service": {"telemetry": {"metrics": {"level": "none"}}, "pipelines": pipelines},
    }
    # JSON is YAML.
    return json.dumps(whole, indent=1)


def ids(file: Path) -> set[str]:
    """The trace ids in a file of JSON, as the page finds them."""
    return set(re.findall('"([0-9a-f]{32})"', file.read_text() if file.exists() else ""))


def watchers(address: str) -> int:
    """How many follow the decisions."""
    return json.loads(get(f"{address}/-/status")[1])["activity"]["watchers"]


def traces(sink: Sink) -> dict[str, set[str]]:
    """The ids of the spans of each trace."""
    found: dict[str, set[str]] = {}
    for span in sink.spans():
        found.setdefault(span["trace_id"], set()).add(span["span_id"])
    return found


class Move:
    """The services of the move, and its steps."""

    def __init__(self, told: argparse.Namespace, children: Children) -> None:
        self.told, self.children = told, children
        names = ("collector", "grpc", "http", "telemetry")
        self.ports = dict(zip(names, free_ports(4), strict=True))
        self.main, self.second = Sink(), Sink()
        self.kept = told.folder / "kept.jsonl"
        self.config = told.folder / "collector.yaml"

    def start_tailwater(self, backend: Sink) -> subprocess.Popen:
        config = self.told.folder / "tailwater.toml"
        config.write_text(CONFIG.format(backend=backend.port, **self.ports))
        process = self.children.start("tailwater", self.told.tailwater, "run", "--config", config)
        ready = f"http://127.0.0.1:{self.ports['telemetry']}/-/ready"
        wait_until("Tailwater is ready", lambda: get(ready)[0] == 200, 60)
        return process

    def stop(self, process: subprocess.Popen, name: str) -> None:
        process.send_signal(signal.SIGTERM)
        stop(process, name, self.children)

    def configure_collector(self, parallel: bool) -> None:
        self.config.write_text(
            collector_config(self.ports, self.main.port, self.kept, parallel=parallel)
        )

    def run(self) -> Sender:
        tailwater = self.start_tailwater(self.second)
        address = f"http://127.0.0.1:{self.ports['telemetry']}"
        follow = ("tail", "--kept", "--max-per-second", 1_000_000, "--format", "json")
        tail = self.children.start("tail", self.told.tailwater, *follow, TAILWATER_ADDRESS=address)
        wait_until("tail follows", lambda: watchers(address) == 1, 10)
        self.configure_collector(parallel=True)
        arguments = ["--config", self.config]
        collector = start_collector(
            self.children, self.told.collector, arguments, [self.ports["collector"]]
        )
        sender = Sender(self.ports["collector"])
        sender.start()
        try:
            time.sleep(PHASE_S)
            self.check_alike(sender.errors[: len(sender.errors) // 2])
            tail.send_signal(signal.SIGINT)
            stop(tail, "tail", self.children)
            self.check_followed(sender.errors)
            self.stop(tailwater, "tailwater")
            tailwater = self.start_tailwater(self.main)
            time.sleep(PHASE_S)
            self.configure_collector(parallel=False)
            collector.send_signal(signal.SIGHUP)
            time.sleep(PHASE_S)
        finally:
            sender.is_open = False
            sender.join(60)
        self.stop(collector, "collector")
        self.stop(tailwater, "tailwater")
        return sender

    def check_alike(self, errors: list[bytes]) -> None:
        """The page compares the ids in the Collector's file with those that `tail` prints."""

        def both_have_all() -> bool:
            wanted = {one.hex() for one in errors}
            return wanted <= ids(self.kept) and wanted <= ids(self.told.folder / "tail.log")

        wait_until("both have kept the same", both_have_all, 10)

    def check_followed(self, errors: list[bytes]) -> None:
        """`tail` has printed kept traces and nothing else, and left none out."""
        followed = [json.loads(line) for line in (self.told.folder / "tail.log").open()]
        wrong = {one.get("decision", {}).get("traceId", str(one)) for one in followed}
        wrong -= {one.hex() for one in errors}
        if wrong:
            raise TroubleError(f"tail has printed more than the kept traces: {sorted(wrong)[:5]}")


def run(told: argparse.Namespace) -> int:
    shutil.rmtree(told.folder, ignore_errors=True)
    told.folder.mkdir(parents=True)
    with Children(told.folder) as children:
        move = Move(told, children)
        try:
            sender = move.run()
            main, second = traces(move.main), traces(move.second)
        finally:
            move.main.stop()
            move.second.stop()
    lost = [one.hex() for one in sender.errors if len(main.get(one.hex(), ())) != 2]
    if lost:
        raise TroubleError(f"{len(lost)} of {len(sender.errors)} traces are not whole: {lost[:5]}")
    if len(sender.errors) < 100:
        raise TroubleError(f"only {len(sender.errors)} traces were sent")
    fine = set(main) - {one.hex() for one in sender.errors}
    if fine:
        raise TroubleError(f"{len(fine)} traces without an error were kept")
    print(f"{len(sender.errors)} traces with an error moved from tail_sampling to Tailwater, whole")
    print(f"{len(second)} of them were kept by both before the switch")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(run, arguments_of(__doc__)))
