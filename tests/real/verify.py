"""Sends a small shop's traces through a real `tailwater run` and checks every span's outcome.

The senders are the Python and the Node OpenTelemetry SDK, the backend is `sink.py`, and a real
Prometheus watches. Then the schema of the configuration (`schema.py`), TLS and tokens
(`secure.py`) and the shipped policies (`cookbook.py`). `run.sh` installs the tools for this.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

import cookbook
import schema
import secure
import shop
import span_metrics
from checks import CHECKS, Evidence
from children import Children, TroubleError, free_ports, wait_until
from metrics import Prometheus, lint
from running import HERE, Report, Senders, Tailwater
from sink import Sink

UNKNOWN_TRACE = "0123456789abcdef0123456789abcdef"
LEDGER = (
    "sum(tailwater_receiver_accepted_spans_total) - sum(tailwater_spans_kept_total)"
    " - sum(tailwater_spans_dropped_total) - sum(tailwater_window_spans)"
)


def gather(tailwater: Tailwater, senders: Senders, sink: Sink, prometheus: Prometheus) -> Evidence:
    """Wait for the senders, for the last decision, and for Prometheus to see it."""
    outputs = senders.wait()
    sent = [span for output in outputs for span in output["spans"]]
    after = tailwater.wait_until_at_rest(len(sent))
    received = sink.spans()
    # After two more scrapes Prometheus has seen the state of rest.
    scrapes = "min(count_over_time(up[1h]))"
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


def check_service(
    report: Report, tailwater: Tailwater, prometheus: Prometheus, promtool: Path
) -> None:
    """The checks that need the running service itself rather than the evidence."""
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
    report.check("SIGTERM ends it with exit code 0", tailwater.stop())
    late = len(sink.spans()) - received
    report.check("nothing more arrives at shutdown", [f"{late} more spans"] if late else [])


def print_summary(e: Evidence) -> None:
    kept = [len(trace.spans) for trace in e.kept()]
    print(f"sent        {len(e.traces)} traces, {len(e.sent)} spans")
    print(f"to be kept  {len(kept)} traces, {sum(kept)} spans")
    print(f"arrived     {len(e.arrived)} traces, {len(e.received)} spans")


def run(report: Report, arguments: argparse.Namespace, children: Children, sink: Sink) -> None:
    tailwater = Tailwater(arguments.tailwater, HERE / "tailwater.toml", sink.port, children)
    try:
        tailwater.wait_until_ready()
        (port,) = free_ports(1)
        prometheus = Prometheus(arguments.prometheus, arguments.folder, port, tailwater.admin_port)
        children.start("prometheus", *prometheus.command)
        wait_until("Prometheus has scraped tailwater", lambda: prometheus.number("min(up)") == 1, 30)
        plan = shop.plan(time.time_ns() - 10**10)
        senders = Senders(plan, arguments.node_sender, tailwater, children)
        evidence = gather(tailwater, senders, sink, prometheus)
    except TroubleError as trouble:
        report.check(
            "the run", [str(trouble), f"tailwater's log ends:\n{children.tail('tailwater')}"]
        )
        return
    print_summary(evidence)
    for name, check in CHECKS.items():
        report.check(name, check(evidence))
    check_service(report, tailwater, prometheus, arguments.promtool)
    span_metrics.run(report, tailwater, prometheus, arguments.promtool, evidence)
    check_shutdown(report, tailwater, sink, len(evidence.received))
    span_metrics.run_connector(report, arguments, children, sink)


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
        schema.run(report, arguments.tailwater, arguments.folder)
        secure.run(report, arguments.tailwater, children)
        cookbook.run(report, arguments.tailwater, arguments.node_sender, children)
    return report.summary()


if __name__ == "__main__":
    sys.exit(main())
