"""Sends a small shop's traces through a real `tailwater run` and checks what came of every span.

The senders are the Python and the Node OpenTelemetry SDK, the backend is `sink.py`, and a real
Prometheus watches. `run.sh` installs what this needs.
"""

import argparse
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import shop
from checks import CHECKS, Evidence, differences
from children import Children, TroubleError, free_ports, get, wait_until
from metrics import Metrics, Prometheus, lint, parse
from sink import Sink

HERE = Path(__file__).resolve().parent
SHUTDOWN_S = 10  # shutdown_timeout in tailwater.toml
UNKNOWN_TRACE = "0123456789abcdef0123456789abcdef"
LEDGER = (
    "sum(tailwater_receiver_accepted_spans_total) - sum(tailwater_spans_kept_total)"
    " - sum(tailwater_spans_dropped_total) - sum(tailwater_window_spans)"
)


class Report:
    """Prints each check with the first things wrong in it, and the count at the end."""

    def __init__(self) -> None:
        self.passed = self.failed = 0

    def check(self, name: str, problems: list[str]) -> None:
        print(f"{'FAIL' if problems else 'ok  '}  {name}", flush=True)
        for problem in problems[:5]:
            print(f"        {problem[:1000]}")
        if len(problems) > 5:
            print(f"        ... and {len(problems) - 5} more")
        self.passed += not problems
        self.failed += bool(problems)

    def summary(self) -> int:
        print(f"{self.passed} passed, {self.failed} failed")
        return 1 if self.failed else 0


class Tailwater:
    """The service under test, with a free port for each of its doors."""

    def __init__(self, binary: Path, sink_port: int, children: Children) -> None:
        self.grpc_port, http_port, self.admin_port = free_ports(3)
        self.process = children.start(
            "tailwater",
            binary,
            "run",
            "--config",
            HERE / "tailwater.toml",
            SHOP_GRPC_PORT=self.grpc_port,
            SHOP_HTTP_PORT=http_port,
            SHOP_SINK_PORT=sink_port,
            SHOP_TELEMETRY_PORT=self.admin_port,
        )

    def get(self, path: str) -> tuple[int, bytes]:
        return get(f"http://127.0.0.1:{self.admin_port}{path}")

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            if self.process.poll() is not None:
                raise TroubleError(f"tailwater ended with exit code {self.process.returncode}")
            return self.get("/-/ready")[0] == 200

        wait_until("tailwater is ready", ready, 15)
        self.before = self.metrics()

    def metrics(self) -> Metrics:
        return parse(self.get("/metrics")[1].decode())

    def wait_until_at_rest(self, spans: int) -> Metrics:
        """The counters when all that was sent has been decided and delivered."""
        names = ("window_spans", "window_traces", "exporter_queue_spans")

        def at_rest() -> bool:
            m = self.metrics()
            waiting = sum(m.total(name) for name in names)
            return m.total("receiver_accepted_spans_total") >= spans and not waiting

        # Where it never comes to rest, the checks of the ledger say more than a time-out would.
        with contextlib.suppress(TroubleError):
            wait_until("tailwater is at rest", at_rest, 20)
        return self.metrics()

    def look_up(self, trace_id: str) -> dict[str, Any]:
        status, body = self.get(f"/-/decisions/{trace_id}")
        if status == 0:
            raise TroubleError("tailwater does not answer any more")
        return json.loads(body) if status == 200 else {"status": status}


class Senders:
    """The two halves of the shop, playing the plan at the same time, each with its SDK."""

    def __init__(self, folder: Path, node_sender: Path, port: int, children: Children) -> None:
        self.children = children
        self.outputs = {name: folder / f"{name}.json" for name in ("python", "node")}
        self.plan = shop.plan(time.time_ns() - 10**10)
        plan_file = folder / "plan.json"
        plan_file.write_text(json.dumps(self.plan))
        common = (
            "--plan",
            plan_file,
            "--endpoint",
            f"127.0.0.1:{port}",
            "--node-port",
            folder / "node.port",
        )
        python, node = (("--sent", output, *common) for output in self.outputs.values())
        self.processes = {
            "python": children.start("python", sys.executable, HERE / "send.py", *python),
            "node": children.start("node", "node", node_sender, *node),
        }

    def wait(self) -> list[dict[str, Any]]:
        """What each wrote down."""
        give_up = time.monotonic() + 60
        while any(sender.poll() is None for sender in self.processes.values()):
            for name, sender in self.processes.items():
                if sender.poll() or time.monotonic() > give_up:
                    said = self.children.tail(name)
                    raise TroubleError(f"the {name} sender's exit code is {sender.poll()}:\n{said}")
            time.sleep(0.05)
        return [json.loads(output.read_text()) for output in self.outputs.values()]


def gather(tailwater: Tailwater, senders: Senders, sink: Sink, prometheus: Prometheus) -> Evidence:
    """Wait for the senders, for the last decision, and for Prometheus to see it."""
    outputs = senders.wait()
    sent = [span for output in outputs for span in output["spans"]]
    after = tailwater.wait_until_at_rest(len(sent))
    received = sink.spans()
    # After two more scrapes Prometheus has seen the state of rest.
    scrapes = "count_over_time(up[1h])"
    seen = prometheus.number(scrapes) or 0
    wait_until("Prometheus scrapes", lambda: (prometheus.number(scrapes) or 0) >= seen + 2, 15)
    return Evidence(
        kinds={trace_id: kind for output in outputs for trace_id, kind in output["kinds"].items()},
        sent=sent,
        received=received,
        late_services=senders.plan["late_services"],
        looked_up={i: tailwater.look_up(i) for i in {span["trace_id"] for span in sent}},
        before=tailwater.before,
        after=after,
        prometheus=prometheus.metrics(),
    )


def check_doors(
    report: Report, tailwater: Tailwater, prometheus: Prometheus, promtool: Path
) -> None:
    """What needs the running service itself rather than the evidence."""
    status = tailwater.look_up(UNKNOWN_TRACE).get("status")
    report.check(
        "an unknown trace is answered 404", [] if status == 404 else [f"answered {status}"]
    )
    healthy = {path: tailwater.get(path)[0] for path in ("/-/healthy", "/-/ready")}
    report.check("healthy and ready", [f"{k}: {v}" for k, v in healthy.items() if v != 200])
    report.check("promtool check metrics", lint(promtool, tailwater.get("/metrics")[1]))
    answers = {"min(up)": 1, LEDGER: 0}
    wrong = [
        f"{q} is {got}, not {v}" for q, v in answers.items() if (got := prometheus.number(q)) != v
    ]
    report.check("the ledger as a query to Prometheus", wrong)


def check_shutdown(report: Report, tailwater: Tailwater, sink: Sink, received: int) -> None:
    tailwater.process.send_signal(signal.SIGTERM)
    try:
        code = tailwater.process.wait(timeout=SHUTDOWN_S)
        problems = differences("exit code", code, 0)
    except subprocess.TimeoutExpired:
        problems = [f"it still runs after {SHUTDOWN_S} s"]
    report.check("SIGTERM ends it with exit code 0", problems)
    late = len(sink.spans()) - received
    report.check("nothing more arrives at shutdown", [f"{late} more spans"] if late else [])


def print_summary(e: Evidence) -> None:
    kept = [len(trace.spans) for trace in e.kept()]
    print(f"sent        {len(e.traces)} traces, {len(e.sent)} spans")
    print(f"to be kept  {len(kept)} traces, {sum(kept)} spans")
    print(f"arrived     {len(e.arrived)} traces, {len(e.received)} spans")


def run(report: Report, arguments: argparse.Namespace, children: Children, sink: Sink) -> None:
    tailwater = Tailwater(arguments.tailwater, sink.port, children)
    try:
        tailwater.wait_until_ready()
        (port,) = free_ports(1)
        prometheus = Prometheus(arguments.prometheus, arguments.folder, port, tailwater.admin_port)
        children.start("prometheus", *prometheus.command)
        wait_until("Prometheus has scraped tailwater", lambda: prometheus.number("up") == 1, 30)
        senders = Senders(arguments.folder, arguments.node_sender, tailwater.grpc_port, children)
        evidence = gather(tailwater, senders, sink, prometheus)
    except TroubleError as trouble:
        report.check(
            "the run", [str(trouble), f"tailwater's log ends:\n{children.tail('tailwater')}"]
        )
        return
    print_summary(evidence)
    for name, check in CHECKS.items():
        report.check(name, check(evidence))
    check_doors(report, tailwater, prometheus, arguments.promtool)
    check_shutdown(report, tailwater, sink, len(evidence.received))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tailwater", type=Path, required=True, help="the binary under test")
    parser.add_argument("--prometheus", type=Path, required=True)
    parser.add_argument("--promtool", type=Path, required=True)
    parser.add_argument(
        "--node-sender", type=Path, required=True, help="send.mjs, beside its packages"
    )
    parser.add_argument(
        "--folder", type=Path, required=True, help="logs and data of this run; emptied first"
    )
    arguments = parser.parse_args()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    arguments.folder.mkdir(parents=True)

    report = Report()
    sink = Sink()
    with Children(arguments.folder) as children:
        try:
            run(report, arguments, children, sink)
        finally:
            sink.stop()
    return report.summary()


if __name__ == "__main__":
    sys.exit(main())
