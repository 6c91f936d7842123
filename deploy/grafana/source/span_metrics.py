"""How many requests do the services get, how many fail, and how long do they take?

Of all spans, not only the kept ones: from /metrics/spans in the style tempo, which a scrape job of its own
reads. Points of the durations are exemplars; the data source says where their traces are.
"""

from panels import dashboard, graph, quantiles, stat, table, variable

CALLS = "traces_spanmetrics_calls_total"
LATENCY = "traces_spanmetrics_latency"
S = ', service=~"$service", span_kind=~"$kind"'
ERROR = S + ', status_code="STATUS_CODE_ERROR"'
ROUTE = ', http_route!=""'


def calls(by, more=S, range_="$__rate_interval"):
    return f"sum by ({by}) (rate({CALLS}{{@{more}}}[{range_}]))"


def error_ratio(by, more="", range_="$__rate_interval"):
    """0 where nothing fails: a series of errors begins with the first one."""
    every = calls(by, S + more, range_)
    return f"({calls(by, ERROR + more, range_)} or 0 * {every}) / ({every} > 0)"


def quantile(q, by, more=""):
    return (
        f"histogram_quantile({q}, sum by ({by}, le) "
        f"(rate({LATENCY}_bucket{{@{S}{more}}}[$__range])))"
    )


def with_exemplars(panel):
    """Asks for the exemplars of the first query, and shows them as points."""
    panel["targets"][0]["exemplar"] = True
    return panel


SUMMARY = [
    stat("Requests", "Spans of the chosen services and kinds, a second.", "reqps",
         f"sum(rate({CALLS}{{@{S}}}[$__range]))", width=6),
    stat("Errors", "Share of them with the status ERROR.", "percentunit",
         f"(sum(rate({CALLS}{{@{ERROR}}}[$__range])) or vector(0))"
         f" / (sum(rate({CALLS}{{@{S}}}[$__range])) > 0)",
         steps=[("green", None), ("yellow", 0.01), ("red", 0.05)], width=6),
    stat("Duration, p50", "Half of the spans are shorter.", "s",
         f"histogram_quantile(0.5, sum by (le) (rate({LATENCY}_bucket{{@{S}}}[$__range])))", width=6),
    stat("Duration, p99", "One span of a hundred is longer.", "s",
         f"histogram_quantile(0.99, sum by (le) (rate({LATENCY}_bucket{{@{S}}}[$__range])))", width=6),
]  # fmt: skip

SERVICES = [
    graph("Requests by service", "Spans a second.", "reqps",
          ("{{service}}", calls("service")), stack=True),
    graph("Errors by service", "Share of the spans with the status ERROR.", "percentunit",
          ("{{service}}", error_ratio("service")), max=1),
    with_exemplars(graph(
        "Duration by service, p95",
        "Points are kept traces: click one to open it. A bucket whose traces were all dropped has no"
        " point.",
        "s", *quantiles(LATENCY, 0.95, by="service", more=S))),
]  # fmt: skip

OPERATIONS = [
    table(
        "Operations in the time range",
        "By service and span name. For HTTP servers the name is method and route.",
        ("Requests", "reqps", calls("service, span_name", range_="$__range")),
        ("Errors", "percentunit", error_ratio("service, span_name", range_="$__range")),
        ("p50", "s", quantile(0.5, "service, span_name")),
        ("p95", "s", quantile(0.95, "service, span_name")),
        ("p99", "s", quantile(0.99, "service, span_name")),
    ),
    graph("Requests by operation", "The ten with most spans a second.", "reqps",
          ("{{service}} {{span_name}}", f"topk(10, {calls('service, span_name')})")),
    graph("Errors by operation", "The ten with most spans of the status ERROR a second.", "reqps",
          ("{{service}} {{span_name}}", f"topk(10, {calls('service, span_name', ERROR)})")),
    with_exemplars(graph(
        "Duration by operation, p95", "The ten longest. Points are kept traces.", "s",
        ("{{service}} {{span_name}}",
         "topk(10, histogram_quantile(0.95, sum by (service, span_name, le) "
         f"(rate({LATENCY}_bucket{{@{S}}}[$__rate_interval]))))"))),
]  # fmt: skip

ROUTES = [
    graph("Requests by route", "Spans a second. No data without the dimension http.route.", "reqps",
          ("{{service}} {{http_route}}", f"topk(10, {calls('service, http_route', S + ROUTE)})")),
    graph("Errors by route", "Share of the spans with the status ERROR.", "percentunit",
          ("{{service}} {{http_route}}", error_ratio("service, http_route", ROUTE)), max=1),
    with_exemplars(graph(
        "Duration by route, p95", "The ten longest. Points are kept traces.", "s",
        ("{{service}} {{http_route}}",
         "topk(10, histogram_quantile(0.95, sum by (service, http_route, le) "
         f"(rate({LATENCY}_bucket{{@{S}{ROUTE}}}[$__rate_interval]))))"))),
]  # fmt: skip

SERIES = [
    graph("Sets of labels",
          "By instance. Each is about twenty series here. At max_series, further sets share one series.",
          "none", ("{{instance}}", f"count by (instance) ({CALLS}{{@}})"), width=12),
    graph("Spans in the overflow series",
          "Spans a second whose labels found no room. They count in sums, but in no service: raise"
          " max_series, or use fewer dimensions.",
          "cps", ("{{instance}}",
                  "sum by (instance) "
                  f"(rate({CALLS}{{@, metric_overflow=\"true\"}}[$__rate_interval])) or "
                  f"0 * count by (instance) ({CALLS}{{@}})"), width=12),
]  # fmt: skip

IN_JOB = f'{CALLS}{{job=~"$job", instance=~"$instance"}}'
SPAN_METRICS = dashboard(
    "Span metrics",
    "Requests, errors and durations of all spans, also of those that are dropped.",
    [
        ("Requests", SUMMARY),
        ("Services", SERVICES),
        ("Operations", OPERATIONS),
        ('Routes (with dimensions = ["http.route"])', ROUTES),
        ("Series", SERIES),
    ],
    [
        variable("service", "Service", IN_JOB, "The services by name"),
        {**variable("kind", "Kind", IN_JOB, "The kinds of spans"),
         "query": f"label_values({IN_JOB}, span_kind)"},
    ],
    CALLS,
)  # fmt: skip
