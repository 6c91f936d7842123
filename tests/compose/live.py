"""The shop, the Collector, Tailwater and Prometheus of deploy/compose as processes on this machine.

The files are used as they are, except that names of containers become ports of the loopback
address.
"""

import argparse
import json
import re
import signal
import sys
import time
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import quote

from children import Children, TroubleError, free_ports, get, wait_until
from running import Report
from sink import Sink

COMPOSE = Path(__file__).resolve().parents[2] / "deploy/compose"


def configuration() -> dict[str, Any]:
    return tomllib.loads((COMPOSE / "tailwater/tailwater.toml").read_text())


class Stack:
    """The running processes, with a port for each listener."""

    def __init__(self, arguments: argparse.Namespace, children: Children, sink: Sink) -> None:
        self.children, self.folder = children, arguments.folder
        self.arguments = arguments
        names = (
            "checkout",
            "collector",
            "collector_http",
            "grpc",
            "http",
            "telemetry",
            "prometheus",
        )
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.ports["tempo"] = sink.port

    def place(self, name: str, changes: dict[str, str]) -> Path:
        """A file with names of containers replaced. Each change must have something to change."""
        text = (COMPOSE / name).read_text()
        for pattern, port in changes.items():
            text, count = re.subn(pattern, f"127.0.0.1:{self.ports[port]}", text)
            if not count:
                raise TroubleError(f"{name} has no {pattern}")
        target = self.folder / Path(name).name
        target.write_text(text)
        return target

    def start(self) -> None:
        (self.folder / "policies.toml").write_text(
            (COMPOSE / "tailwater/policies.toml").read_text()
        )
        config = self.place(
            "tailwater/tailwater.toml",
            {
                r"0\.0\.0\.0:4317": "grpc",
                r"0\.0\.0\.0:4318": "http",
                r"0\.0\.0\.0:9464": "telemetry",
                "tempo:4317": "tempo",
            },
        )
        self.children.start("tailwater", self.arguments.tailwater, "run", "--config", config)
        collector = self.place(
            "collector.yaml",
            {
                r"0\.0\.0\.0:4317": "collector",
                r"0\.0\.0\.0:4318": "collector_http",
                "tailwater:4317": "grpc",
            },
        )
        self.children.start("collector", self.arguments.collector, f"--config={collector}")
        self.place_prometheus()
        ready = f"http://127.0.0.1:{self.ports['telemetry']}/-/ready"
        wait_until("Tailwater is ready", lambda: get(ready)[0] == 200, 15)
        self.start_shop()

    def place_prometheus(self) -> None:
        config = self.place("prometheus.yml", {"tailwater:9464": "telemetry"})
        (self.folder / "rules").symlink_to(COMPOSE.parent / "prometheus")
        self.children.start(
            "prometheus",
            self.arguments.prometheus,
            f"--config.file={config}",
            f"--storage.tsdb.path={self.folder / 'prometheus'}",
            f"--web.listen-address=127.0.0.1:{self.ports['prometheus']}",
            "--enable-feature=exemplar-storage",
        )

    def start_shop(self) -> None:
        otlp = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.ports['collector']}",
            "OTEL_BSP_SCHEDULE_DELAY": "1000",
        }
        checkout = COMPOSE / "shop/checkout/server.py"
        self.children.start(
            "checkout",
            sys.executable,
            checkout,
            PORT=self.ports["checkout"],
            OTEL_SERVICE_NAME="checkout",
            **otlp,
        )
        self.gateway = self.children.start(
            "gateway",
            "node",
            self.arguments.gateway,
            OTEL_SERVICE_NAME="gateway",
            CHECKOUT_URL=f"http://127.0.0.1:{self.ports['checkout']}",
            ORDERS_PER_SECOND=50,
            **otlp,
        )

    def value(self, query: str) -> float:
        """The first value that Prometheus answers, 0 if there is none."""
        url = f"http://127.0.0.1:{self.ports['prometheus']}/api/v1/query?query={quote(query)}"
        status, body = get(url)
        result = json.loads(body)["data"]["result"] if status == 200 else None
        return float(result[0]["value"][1]) if result else 0.0


def kept_traces(sink: Sink) -> dict[str, set[str]]:
    """The names of the spans of each trace that has arrived."""
    traces: dict[str, set[str]] = {}
    for span in sink.spans():
        traces.setdefault(span["trace_id"], set()).add(span["name"])
    return traces


def check(stack: Stack, sink: Sink) -> list[str]:
    whole = {"GET /api/checkout", "POST /charge", "charge card"}
    wait_until(
        "a trace of both services arrives",
        lambda: any(whole <= names for names in kept_traces(sink).values()),
        60,
    )
    for policy in ("errors", "slow", "baseline"):
        query = f'tailwater_traces_kept_total{{job="tailwater",policy="{policy}"}}'
        wait_until(f"Prometheus sees traces kept by {policy}", lambda q=query: stack.value(q), 60)
    problems = []
    if stack.value('tailwater_traces_dropped_total{policy="baseline"}') == 0:
        problems.append("nothing is dropped")
    if stack.value('up{job="tailwater"}') != 1:
        problems.append("Tailwater is not up")
    return problems


def check_exemplars(stack: Stack, sink: Sink) -> list[str]:
    """An exemplar in Prometheus leads to a trace that was kept."""
    now = time.time()
    url = (
        f"http://127.0.0.1:{stack.ports['prometheus']}/api/v1/query_exemplars"
        f"?query={quote('traces_spanmetrics_latency_bucket')}&start={now - 600}&end={now + 600}"
    )

    def exemplars() -> Any:
        status, body = get(url)
        return json.loads(body)["data"] if status == 200 else None

    found = wait_until("Prometheus has exemplars", exemplars, 60)
    ids = {one["labels"]["traceID"] for series in found for one in series["exemplars"]}
    return [f"{one} was not kept" for one in ids - kept_traces(sink).keys()]


def run(report: Report, arguments: argparse.Namespace) -> None:
    sink = Sink()
    with Children(arguments.folder) as children:
        stack = Stack(arguments, children, sink)
        try:
            stack.start()
            report.check("traces of two SDKs pass the whole chain", check(stack, sink))
            if "span_metrics" in configuration():
                report.check("exemplars lead to kept traces", check_exemplars(stack, sink))
            stack.gateway.send_signal(signal.SIGTERM)
            code = stack.gateway.wait(timeout=10)
            report.check("the gateway ends in order", [f"exit code {code}"] if code else [])
        except TroubleError as trouble:
            logs = [
                f"{file.stem}:\n{children.tail(file.stem)}"
                for file in arguments.folder.glob("*.log")
            ]
            report.check("the stack runs", [str(trouble), *logs])
        finally:
            sink.stop()
