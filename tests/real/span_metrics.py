"""Metrics from all spans, as a real Prometheus scrapes them, exemplars included.

Prometheus asks for OpenMetrics, so that it accepts a scrape at all shows that the format is right:
it refuses one with an unknown escape, a series that is there twice, or no end. The exemplars lead
to traces that the sink has.
"""

import argparse
import json
import time
import urllib.request
from collections import Counter
from pathlib import Path

from checks import Evidence, Problems, differences, service_of
from children import Children, TroubleError, free_ports, wait_until
from metrics import Prometheus, lint
from running import HERE, Report, Tailwater
from sink import Sink

PATH = "/metrics/spans"
KINDS = ("SERVER", "CONSUMER")  # the default
LABELS = ("service", "span_name", "span_kind", "status_code", "http_route")
# The bounds of the buckets, in seconds.
BOUNDS = [0.002 * 2**power for power in range(14)]

# Names that would end a label, a line or a scrape if they were not escaped or repaired.
HOSTILE = ['a"b\\c\nd', "nul\0", "\x1b[31m", "é" * 300, "\u2028", '"} 1\n# EOF\n', "{}", ""]

Series = tuple[str, ...]


def run(
    report: Report, tailwater: Tailwater, prometheus: Prometheus, promtool: Path, e: Evidence
) -> None:
    text = tailwater.get(PATH)[1]
    report.check("promtool check metrics, of all spans", lint(promtool, text))
    report.check("calls of all spans are those that the SDKs sent", calls(prometheus, e))
    report.check("durations of all spans are those that the SDKs sent", durations(prometheus, e))
    report.check("each exemplar's trace is in the sink", exemplars(prometheus, e))
    report.check("hostile names of spans are labels too", hostile(tailwater, prometheus))
    up = prometheus.number('min_over_time(up{job="spans"}[1h])')
    report.check("every scrape of /metrics/spans was good", differences("up", up, 1))


def run_connector(
    report: Report, arguments: argparse.Namespace, children: Children, sink: Sink
) -> None:
    """The other style, in a service and a Prometheus of its own."""
    config = HERE / "tailwater.toml"
    tailwater = Tailwater(arguments.tailwater, config, sink.port, children, "connector")
    (port,) = free_ports(1)
    folder = arguments.folder / "connector"
    prometheus = Prometheus(arguments.prometheus, folder, port, tailwater.admin_port)
    name = "style connector: calls, and exemplars whose traces are in the sink"
    try:
        tailwater.wait_until_ready()
        children.start("prometheus-connector", *prometheus.command)
        wait_until("a scrape", lambda: prometheus.number('min(up{job="spans"})') == 1, 30)
        problems = connector(tailwater, prometheus, sink)
    except TroubleError as trouble:
        problems = [str(trouble)]
    report.check(name, problems)
    text = tailwater.get(PATH)[1]
    report.check("promtool check metrics, style connector", lint(arguments.promtool, text))
    report.check("SIGTERM ends the second service, too", tailwater.stop())


def connector(tailwater: Tailwater, prometheus: Prometheus, sink: Sink) -> Problems:
    """Ten traces with an error, which are kept, and ten of low randomness, which are not."""
    now = time.time_ns()
    numbers = range(1, 11)
    kept = {f"{n:016x}{0:015x}2": {"status": {"code": 2}} for n in numbers}
    dropped: dict[str, dict] = {f"{n:016x}{0:015x}3": {} for n in numbers}
    common = {"spanId": f"{1:016x}", "name": "pay", "kind": 2, "startTimeUnixNano": str(now)}
    spans = [
        {"traceId": trace_id, **common, "endTimeUnixNano": str(now + n * 10**7), **more}
        for n, (trace_id, more) in enumerate((kept | dropped).items(), 1)
    ]
    send(tailwater, "till", spans)
    query = "sum by (status_code) (traces_span_metrics_calls_total)"
    wanted = {"STATUS_CODE_ERROR": 10.0, "STATUS_CODE_UNSET": 10.0}

    def all_counted() -> bool:
        answers = prometheus.query(query)
        return wanted == {one["metric"]["status_code"]: float(one["value"][1]) for one in answers}

    wait_until(query, all_counted, 15)
    buckets = "traces_span_metrics_duration_seconds_bucket"
    wait_until("exemplars", lambda: prometheus.exemplars(buckets), 15)
    named = {one["labels"].get("trace_id") for one in prometheus.exemplars(buckets)}
    arrived = {span["trace_id"] for span in sink.spans()}
    problems = [f"the sink has no trace {one}" for one in named - arrived]
    return problems + [f"{one} was not to be kept" for one in named - kept.keys()]


def series_of(span: dict) -> Series:
    attributes = {key: value.get("string", "") for key, value in span["attributes"]}
    resource = {key: value.get("string", "") for key, value in span["resource"]}
    return (
        service_of(span),
        span["name"],
        f"SPAN_KIND_{span['kind']}",
        f"STATUS_CODE_{span['status']['code']}",
        attributes.get("http.route") or resource.get("http.route", ""),
    )


def counted(e: Evidence) -> list[dict]:
    return [span for span in e.sent if span["kind"] in KINDS]


def seconds_of(span: dict) -> float:
    return max(0, int(span["end"]) - int(span["start"])) / 1e9


def calls(prometheus: Prometheus, e: Evidence) -> Problems:
    sent = Counter(series_of(span) for span in counted(e))
    got = {
        tuple(one["metric"].get(label, "") for label in LABELS): float(one["value"][1])
        for one in prometheus.query("traces_spanmetrics_calls_total")
    }
    problems = [] if len(sent) > 3 else [f"the SDKs sent only {sent}"]
    return problems + [
        f"{series}: Prometheus has {got.get(series)}, sent were {sent.get(series)}"
        for series in sorted(sent.keys() | got.keys())
        if got.get(series) != sent.get(series)
    ]


def durations(prometheus: Prometheus, e: Evidence) -> Problems:
    seconds = [seconds_of(span) for span in counted(e)]
    problems = []
    for bound in BOUNDS:
        query = f'sum(traces_spanmetrics_latency_bucket{{le="{bound:g}"}})'
        problems += differences(query, prometheus.number(query), sum(s <= bound for s in seconds))
    total = prometheus.number("sum(traces_spanmetrics_latency_sum)") or 0.0
    if abs(total - sum(seconds)) > 1e-6:
        problems.append(f"the sum is {total}, the spans last {sum(seconds)}")
    return problems


def exemplars(prometheus: Prometheus, e: Evidence) -> Problems:
    kept = {trace.id for trace in e.kept()}
    durations = {(span["trace_id"], round(seconds_of(span), 6)) for span in counted(e)}
    found = prometheus.exemplars("traces_spanmetrics_latency_bucket")
    problems = [] if found else ["Prometheus has no exemplar"]
    for one in found:
        trace_id = one["labels"].get("traceID", "")
        if trace_id not in e.arrived:
            problems.append(f"the sink has no trace {trace_id}, the exemplar {one}")
        if (trace_id, round(float(one["value"]), 6)) not in durations:
            problems.append(f"no span of the trace lasts as long as the exemplar {one}")
    # The newest kept trace of each bucket stays.
    named = {one["labels"].get("traceID") for one in found}
    if not named <= kept:
        problems.append(f"{named - kept} were not to be kept")
    return problems


def hostile(tailwater: Tailwater, prometheus: Prometheus) -> Problems:
    """Short traces of low randomness, which are dropped and count all the same."""
    now = time.time_ns()
    times = {"startTimeUnixNano": str(now), "endTimeUnixNano": str(now + 10**6)}
    spans = [
        {"traceId": f"{n:016x}{0:015x}1", "spanId": f"{n:016x}", "name": name, "kind": 2, **times}
        for n, name in enumerate(HOSTILE, 1)
    ]
    send(tailwater, "hostile", spans)
    query = 'traces_spanmetrics_calls_total{service="hostile"}'
    try:
        wait_until(query, lambda: len(prometheus.query(query)) == len(HOSTILE), 15)
    except TroubleError as trouble:
        return [str(trouble)]
    names = {one["metric"].get("span_name", "") for one in prometheus.query(query)}
    wanted = {name.replace("\0", "\ufffd")[:127] for name in HOSTILE}
    return differences("the names", sorted(names), sorted(wanted))


def send(tailwater: Tailwater, service: str, spans: list[dict]) -> None:
    attribute = {"key": "service.name", "value": {"stringValue": service}}
    resource = {"resource": {"attributes": [attribute]}, "scopeSpans": [{"spans": spans}]}
    request = urllib.request.Request(
        f"http://127.0.0.1:{tailwater.http_port}/v1/traces",
        json.dumps({"resourceSpans": [resource]}).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10):
        pass
