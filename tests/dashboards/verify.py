"""Runs every query of the dashboards, alerts and the runbook against a real Prometheus.

It scrapes `tailwater demo`, and a second instance with certificates, durability, span metrics, and
policies of every kind that has metrics of its own. A query that fails, finds nothing, or refers to
a series that does not exist is a fault, unless the series belongs to a feature in
`features-off.txt`. `check.mjs` writes the queries and `run.sh` installs the tools for this.
"""

import argparse
import contextlib
import json
import re
import shutil
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "real"))
from children import Children, TroubleError, free_ports, get, wait_until  # noqa: E402
from running import Report  # noqa: E402

RULES = HERE.parent.parent / "deploy/prometheus/tailwater-alerts.yml"
OFF = [
    line
    for line in (HERE / "features-off.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
# A query that ends so finds nothing while all is well; what stands before it must find something.
COMPARISON = re.compile(r"\s*(>=?|<=?|==|!=)\s*[\d.]+( \* \d+)?$")
ALTERNATIVES = re.compile(r'(\w+)=~"([^"]*\|[^"]*)"')


class Prometheus:
    """Scrapes the instances and evaluates the rules every second."""

    def __init__(self, binary: Path, children: Children, targets: list[str]) -> None:
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        config = children.folder / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
            f"rule_files: ['{RULES}']\n"
            "scrape_configs:\n"
            "  - job_name: tailwater\n"
            f"    static_configs: [{{targets: {targets}}}]\n"
            "  - job_name: span-metrics\n"
            "    metrics_path: /metrics/spans\n"
            f"    static_configs: [{{targets: {targets[1:]}}}]\n"
        )
        children.start(
            "prometheus",
            binary,
            f"--config.file={config}",
            f"--storage.tsdb.path={children.folder / 'prometheus-data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        )
        wait_until("Prometheus is ready", lambda: get(f"{self.url}/-/ready")[0] == 200, 30)

    def ask(self, path: str) -> dict[str, Any]:
        """An answer of the HTTP API; `error` says what went wrong."""
        status, body = get(self.url + path)
        return json.loads(body) if status else {"error": "Prometheus does not answer"}

    def query(self, expression: str) -> tuple[list[dict[str, Any]], str]:
        """The samples, and the error."""
        answer = self.ask(f"/api/v1/query?query={urllib.parse.quote(expression)}")
        return answer.get("data", {}).get("result", []), answer.get("error", "")

    def finds(self, expression: str) -> bool:
        return bool(self.query(expression)[0])


def start_demo(binary: Path, children: Children) -> str:
    """Start the demo, and return the address of its metrics."""
    children.start("demo", binary, "demo")
    log = children.folder / "demo.log"

    def address() -> str | None:
        found = re.search(r"curl (\S+)/metrics", log.read_text())
        return found and found[1]

    return wait_until("the demo says where its metrics are", address, 15)


def start_second(binary: Path, children: Children) -> str:
    """Start the instance of tailwater.toml, and return the address of its metrics."""
    folder = children.folder
    shutil.copy(HERE / "tailwater.toml", folder)
    names = ("-keyout", "tls.key", "-out", "tls.crt", "-subj", "/CN=tailwater", "-days", "365")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *names],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    port, http = free_ports(2)
    config = folder / "tailwater.toml"
    environment = {"DASHBOARDS_TELEMETRY_PORT": port, "DASHBOARDS_HTTP_PORT": http}
    children.start("second", binary, "run", "--config", config, **environment)
    ready = f"http://127.0.0.1:{port}/-/ready"
    wait_until("the second instance is ready", lambda: get(ready)[0] == 200, 15)
    receiver = f"https://127.0.0.1:{http}"

    def keep_calling() -> None:
        # Ends with the instance.
        with contextlib.suppress(OSError):
            # The third kind comes later than the others, so it is the one that gets no series.
            # The spans of one request are counted in the order of their shards.
            kinds = 2
            while True:
                send_calls(receiver, folder / "tls.crt", kinds)
                kinds = 3
                time.sleep(0.5)

    threading.Thread(target=keep_calling, daemon=True).start()
    return f"127.0.0.1:{port}"


def send_calls(receiver: str, certificate: Path, kinds: int) -> None:
    """Send up to three kinds of calls, so that span metrics have something to count."""
    end_ns = time.time_ns()

    def call(number: int, name: str, status: int) -> dict[str, Any]:
        return {
            "traceId": f"{end_ns + number:032x}",
            "spanId": f"{end_ns + number:016x}",
            "name": name,
            "kind": 2,
            "startTimeUnixNano": end_ns - 50_000_000,
            "endTimeUnixNano": end_ns,
            "attributes": [{"key": "http.route", "value": {"stringValue": "/"}}],
            "status": {"code": status},
        }

    spans = [call(1, "GET /", 0), call(2, "GET /", 2), call(3, "POST /", 0)][:kinds]
    service = {"key": "service.name", "value": {"stringValue": "desk"}}
    of_service = {"resource": {"attributes": [service]}, "scopeSpans": [{"spans": spans}]}
    body = json.dumps({"resourceSpans": [of_service]}).encode()
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{receiver}/v1/traces", body, headers)
    context = ssl.create_default_context(cafile=str(certificate))
    # The certificate is for a name, not for an address.
    context.check_hostname = False
    urllib.request.urlopen(request, timeout=10, context=context).close()


def alternatives(selector: str) -> list[str]:
    """The selector once for each value that a regular expression of its labels lists."""
    found = ALTERNATIVES.search(selector)
    if not found:
        return [selector]
    label, values = found.groups()
    before, after = selector[: found.start()], selector[found.end() :]
    return [f'{before}{label}="{value}"{after}' for value in values.split("|")]


def is_off(text: str) -> bool:
    return any(feature in text for feature in OFF)


def check_selectors(report: Report, prometheus: Prometheus, queries: list[dict]) -> None:
    where = {}
    for one in queries:
        for selector in one["selectors"]:
            for alternative in alternatives(selector):
                where.setdefault(alternative, one["where"])
    wanted = {selector for selector in where if not is_off(selector)}
    missing = [
        f"{where[s]}: there is no {s}"
        for s in sorted(wanted)
        if not prometheus.finds(f"count({s})")
    ]
    report.check(f"{len(wanted)} selectors find their series", missing)
    off = sorted(set(where) - wanted)
    print(f"      not looked for, because a feature is off: {len(off)} selectors")
    for selector in off:
        if prometheus.finds(f"count({selector})"):
            print(f"      note: {selector} is there now; shorten features-off.txt")


def check_queries(report: Report, prometheus: Prometheus, queries: list[dict]) -> None:
    faults = []
    for one in queries:
        expression = one["expr"]
        _, error = prometheus.query(expression)
        if error:
            faults.append(f"{one['where']}: {error}: {expression}")
        # An alert is to find nothing, and a metric of a feature that is off cannot.
        elif re.match(r"Tailwater[A-Z]", one["where"]) or is_off(expression):
            continue
        elif not prometheus.finds(COMPARISON.sub("", expression)):
            faults.append(f"{one['where']}: finds nothing: {expression}")
    report.check(f"{len(queries)} queries work, and all but alerts find something", faults)


def check_rules(report: Report, prometheus: Prometheus) -> None:
    groups = prometheus.ask("/api/v1/rules")["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    faults = [
        f"{rule['name']}: {rule.get('lastError', rule['health'])}"
        for rule in rules
        if rule["health"] != "ok"
    ]
    report.check(f"Prometheus evaluates {len(rules)} rules", faults)
    # For ten seconds on end: before the first scrape there is no target, and a scrape under load
    # may catch spans on their way.
    alerts = prometheus.query("count_over_time(ALERTS[10s]) > 8")[0]
    faults = [f"{one['metric']['alertname']}: {one['metric']}" for one in alerts]
    report.check("no alert stays pending or fires under healthy traffic", faults)


def run(report: Report, arguments: argparse.Namespace, children: Children) -> None:
    queries = json.loads(arguments.queries.read_text())
    targets = [
        start_demo(arguments.tailwater, children),
        start_second(arguments.tailwater, children),
    ]
    prometheus = Prometheus(arguments.prometheus, children, targets)
    # Traces are decided and delivered, and late enough for rates over several scrapes.
    busy = "sum(rate(tailwater_exporter_sent_spans_total[4s])) > 0"
    rules = "count(tailwater:kept_unaccounted_spans) == 2"
    scrapes = "min(count_over_time(tailwater_build_info[1h])) > 15"
    for wanted in (busy, rules, scrapes):
        wait_until(wanted, lambda wanted=wanted: prometheus.finds(wanted), 60)
    check_selectors(report, prometheus, queries)
    check_queries(report, prometheus, queries)
    check_rules(report, prometheus)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tailwater", type=Path, required=True, help="the binary under test")
    parser.add_argument("--prometheus", type=Path, required=True)
    parser.add_argument("--queries", type=Path, required=True, help="what check.mjs wrote")
    parser.add_argument(
        "--folder", type=Path, required=True, help="logs and data of this run; emptied first"
    )
    arguments = parser.parse_args()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    arguments.folder.mkdir(parents=True)
    report = Report()
    with Children(arguments.folder) as children:
        try:
            run(report, arguments, children)
        except TroubleError as trouble:
            logs = [children.tail(path.stem) for path in sorted(arguments.folder.glob("*.log"))]
            report.check("the run", [str(trouble), *logs])
    return report.summary()


if __name__ == "__main__":
    sys.exit(main())
