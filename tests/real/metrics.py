"""Tailwater's metrics as numbers: from its own scrape, and as a real Prometheus has them."""

import json
import re
import subprocess
import time
import urllib.parse
from pathlib import Path
from typing import Any

from children import get

LINE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

# The metrics that stop changing once all traces are decided and delivered.
AT_REST = (
    "receiver_accepted_spans_total",
    "receiver_refused_spans_total",
    "receiver_refused_requests_total",
    "receiver_requests_total",
    "traces_kept_total",
    "traces_dropped_total",
    "spans_kept_total",
    "spans_dropped_total",
    "decisions_total",
    "late_spans_total",
    "late_error_spans_total",
    "policy_matches_total",
    "window_traces",
    "window_spans",
    "exporter_sent_spans_total",
    "exporter_failed_spans_total",
    "exporter_queue_spans",
    "task_restarts_total",
)

Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Series at one time. Names are without their prefix."""

    def __init__(self, series: dict[tuple[str, Labels], float]) -> None:
        self.series = series

    def total(self, name: str, **labels: str) -> float:
        """The sum of the series with this name that have these labels."""
        return sum(
            value
            for (series, has), value in self.series.items()
            if series == name and labels.items() <= dict(has).items()
        )

    def by(self, name: str, *labels: str) -> dict[Any, float]:
        """The series with this name, summed by one or more labels, without those at zero."""
        sums: dict[Any, float] = {}
        for (series, has), value in self.series.items():
            if series == name and value:
                values = tuple(dict(has).get(label, "") for label in labels)
                key = values[0] if len(values) == 1 else values
                sums[key] = sums.get(key, 0) + value
        return sums

    def at_rest(self) -> dict[tuple[str, Labels], float]:
        return {key: value for key, value in self.series.items() if key[0] in AT_REST}


def parse(scrape: str) -> Metrics:
    """Read the part of the text exposition format that Tailwater uses."""
    series = {}
    for line in scrape.splitlines():
        found = LINE.match(line)
        if found and found[1].startswith("tailwater_"):
            labels = tuple(sorted(LABEL.findall(found[2] or "")))
            series[found[1].removeprefix("tailwater_"), labels] = float(found[3])
    return Metrics(series)


class Prometheus:
    """A real Prometheus that scrapes both paths every second into a data directory of its own."""

    def __init__(self, binary: Path, folder: Path, port: int, target_port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        folder.mkdir(exist_ok=True)
        config = folder / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 1s}\n"
            "scrape_configs:\n"
            "  - job_name: tailwater\n"
            f"    static_configs: [{{targets: ['127.0.0.1:{target_port}']}}]\n"
            "  - job_name: spans\n"
            "    metrics_path: /metrics/spans\n"
            f"    static_configs: [{{targets: ['127.0.0.1:{target_port}']}}]\n"
        )
        self.command = [
            binary,
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'prometheus-data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--enable-feature=exemplar-storage",
        ]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The instant vector that the HTTP API answers; empty while it does not answer."""
        status, body = get(f"{self.url}/api/v1/query?query={urllib.parse.quote(expression)}")
        return json.loads(body)["data"]["result"] if status == 200 else []

    def number(self, expression: str) -> float | None:
        """The value of an expression with one result."""
        answer = self.query(expression)
        return float(answer[0]["value"][1]) if len(answer) == 1 else None

    def exemplars(self, expression: str) -> list[dict[str, Any]]:
        """All exemplars of the last hour of the series that an expression names."""
        now = time.time()
        query = {"query": expression, "start": now - 3600, "end": now + 60}
        _, body = get(f"{self.url}/api/v1/query_exemplars?{urllib.parse.urlencode(query)}")
        series = json.loads(body)["data"]
        return [exemplar for one in series for exemplar in one["exemplars"]]

    def metrics(self) -> Metrics:
        series = {}
        for one in self.query('{job="tailwater",__name__=~"tailwater_.*"}'):
            labels = one["metric"]
            name = labels.pop("__name__").removeprefix("tailwater_")
            own = tuple(sorted((k, v) for k, v in labels.items() if k not in ("job", "instance")))
            series[name, own] = float(one["value"][1])
        return Metrics(series)


def lint(promtool: Path, scrape: bytes) -> list[str]:
    """The objections of `promtool check metrics`."""
    done = subprocess.run(
        [promtool, "check", "metrics"], input=scrape, capture_output=True, timeout=30, check=False
    )
    complaints = (done.stdout + done.stderr).decode().splitlines()
    return complaints or ([f"exit code {done.returncode}"] if done.returncode else [])
