"""Metrics from all spans, as a real Prometheus scrapes them, exemplars included.

Prometheus asks for OpenMetrics, so that it accepts a scrape at all shows that the format is right:
it refuses one with an unknown escape, a series that is there twice, or no end. The exemplars lead
to traces that the sink has.
"""

import json
import time
import urllib.request
from collections import Counter
from pathlib import Path

from checks import Evidence, Problems, differences, service_of
from children import TroubleError, wait_until
from metrics import Prometheus, lint
from running import Report, Tailwater

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
    service = {"key": "service.name", "value": {"stringValue": "hostile"}}
    resource = {"resource": {"attributes": [service]}, "scopeSpans": [{"spans": spans}]}
    request = urllib.request.Request(
        f"http://127.0.0.1:{tailwater.http_port}/v1/traces",
        json.dumps({"resourceSpans": [resource]}).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10):
        pass
    query = 'traces_spanmetrics_calls_total{service="hostile"}'
    try:
        wait_until(query, lambda: len(prometheus.query(query)) == len(HOSTILE), 15)
    except TroubleError as trouble:
        return [str(trouble)]
    names = {one["metric"].get("span_name", "") for one in prometheus.query(query)}
    wanted = {name.replace("\0", "\ufffd")[:127] for name in HOSTILE}
    return differences("the names", sorted(names), sorted(wanted))
