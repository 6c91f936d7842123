"""Is it well, and where do spans go? Rows in the order of the data flow."""

from panels import (
    NONE_IS_GOOD,
    ONE_IS_GOOD,
    dashboard,
    good_below,
    graph,
    quantiles,
    rate,
    stat,
    table,
    total,
)

UNACCOUNTED = {
    "accepted": (
        "sum by (instance) (tailwater_receiver_accepted_spans_total{@})"
        " - sum by (instance) (tailwater_spans_kept_total{@})"
        " - sum by (instance) (tailwater_spans_dropped_total{@})"
        " - sum by (instance) (tailwater_window_spans{@})"
        " - (sum by (instance) (tailwater_spans_handed_over_total{@})"
        " or sum by (instance) (tailwater_window_spans{@}) * 0)"
    ),
    "kept": (
        "sum by (instance) (tailwater_spans_kept_total{@})"
        " - sum by (instance) (tailwater_exporter_sent_spans_total{@})"
        " - sum by (instance) (tailwater_exporter_failed_spans_total{@})"
        " - sum by (instance) (tailwater_exporter_queue_spans{@})"
    ),
}
KEPT_SHARE = (
    "sum(rate(tailwater_spans_kept_total{@}[$__rate_interval]))"
    " / (sum(rate(tailwater_spans_kept_total{@}[$__rate_interval]))"
    " + sum(rate(tailwater_spans_dropped_total{@}[$__rate_interval])))"
)

GLANCE = [
    stat(
        "Instances", "Instances that answer scrapes.", "none", "count(tailwater_build_info{@})",
    ),
    stat(
        "Not ready",
        "Instances that start, shut down, or have a task that keeps panicking. The alert"
        " TailwaterNotReady fires after 5 minutes.",
        "none", "count(tailwater_ready{@} == 0) or vector(0) * count(tailwater_ready{@})",
        NONE_IS_GOOD,
    ),
    stat(
        "Spans in", "Spans accepted per second.", "cps",
        "sum(rate(tailwater_receiver_accepted_spans_total{@}[$__rate_interval]))",
    ),
    stat(
        "Spans kept", "Share of the decided spans that is kept.", "percentunit", KEPT_SHARE,
    ),
    stat(
        "Kept spans lost",
        "Kept spans that never reached the backend, in the time range. Each of them has a reason"
        " below. Must be 0.",
        "short", total("tailwater_exporter_failed_spans_total"), NONE_IS_GOOD, decimals=0,
    ),
    stat(
        "Unaccounted",
        "Spans that are missing in the two sums of the ledger, beyond one second of traffic, which"
        " may be on its way while it is read. Must be 0. The alert TailwaterLedgerBroken.",
        "short",
        [
            (name, f"max(clamp_min(abs({UNACCOUNTED[name]})"
             f" - sum by (instance) (rate({metric}{{@}}[$__rate_interval])), 0))")
            for name, metric in (
                ("accepted", "tailwater_receiver_accepted_spans_total"),
                ("kept", "tailwater_spans_kept_total"),
            )
        ],
        NONE_IS_GOOD, decimals=0,
    ),
    stat(
        "Memory",
        "Memory in use of the fullest instance, as a share of its limit. From 80 % on the oldest"
        " traces are decided early; at 100 % requests are refused.",
        "percentunit", "max(tailwater_memory_used_bytes{@} / tailwater_memory_limit_bytes{@})",
        good_below(0.75, 0.9),
    ),
    stat(
        "Export queue",
        "Fill of the fullest export queue. The alert TailwaterQueueFilling fires above 50 %; with"
        ' overflow = "block", requests are refused from 75 % on.',
        "percentunit",
        "max(tailwater_exporter_queue_bytes{@} / tailwater_exporter_queue_capacity_bytes{@})",
        good_below(0.5, 0.75),
    ),
]  # fmt: skip

RECEIVER = [
    graph(
        "Spans accepted", "Spans acknowledged, by transport.", "cps",
        ("{{transport}}", rate("transport", "tailwater_receiver_accepted_spans_total")),
        stack=True,
    ),
    graph(
        "Requests", "Requests answered, by gRPC code or HTTP status.", "reqps",
        ("{{transport}} {{code}}", rate("transport, code", "tailwater_receiver_requests_total")
         + " > 0"),
        stack=True,
    ),
    graph(
        "Requests refused",
        "Requests of which nothing was taken. Senders retry memory, queue_full, disk, draining and"
        " timeout; the other reasons cost them their spans.",
        "reqps",
        ("{{reason}}", rate("reason", "tailwater_receiver_refused_requests_total")),
        stack=True,
    ),
    graph(
        "Spans refused, requests without spans",
        "Spans rejected inside an accepted request (malformed ids, a resource or scope that is too"
        " large), and requests that carry bytes but no span.",
        "cps",
        ("spans: {{reason}}", rate("reason", "tailwater_receiver_refused_spans_total")),
        ("requests without spans",
         "sum(rate(tailwater_receiver_empty_requests_total{@}[$__rate_interval]))"),
    ),
    graph(
        "Connections", "Open connections of senders.", "none",
        ("{{transport}}", "sum by (transport) (tailwater_receiver_connections{@})"), stack=True,
    ),
    graph(
        "Connections closed",
        "Connections that were closed, by what closed them, and failed TLS handshakes.", "cps",
        ("{{reason}}", rate("reason", "tailwater_receiver_connections_closed_total") + " > 0"),
        ("TLS handshake failed",
         "sum(rate(tailwater_receiver_tls_handshake_failures_total{@}[$__rate_interval]))"),
    ),
]  # fmt: skip

KAFKA = [
    graph(
        "Kafka lag",
        "Records between the position of an instance and the end of its partitions. No data unless"
        " [receiver.kafka] is set.",
        "none", ("{{instance}}", "sum by (instance) (tailwater_kafka_lag_records{@})"),
    ),
    graph(
        "Kafka: age of the commit",
        "Age of the last committed position. At least decision_wait is normal. The alert"
        " TailwaterCommitStuck fires above 5 minutes.",
        "s", ("{{instance}}", "max by (instance) (tailwater_kafka_commit_age_seconds{@})"),
        steps=[("green", None), ("red", 300)],
    ),
    graph(
        "Kafka: records",
        "Records read; undecodable ones, which are skipped; and those that retention removed"
        " before they were read.",
        "cps",
        ("read", "sum(rate(tailwater_kafka_records_total{@}[$__rate_interval]))"),
        ("undecodable",
         "sum(rate(tailwater_kafka_undecodable_records_total{@}[$__rate_interval]))"),
        ("lost", "sum(rate(tailwater_kafka_lost_records_total{@}[$__rate_interval]))"),
    ),
    graph(
        "Kafka: partitions", "Partitions of each instance.", "none",
        ("{{instance}}", "sum by (instance) (tailwater_kafka_partitions{@})"),
        width=12, stack=True,
    ),
    graph(
        "Kafka: rebalances, spans handed over",
        "Rebalances of the group, and undecided spans that left with a partition (another instance"
        " decides them), within the interval of the rate.",
        "none",
        ("rebalances of {{instance}}",
         "sum by (instance) (increase(tailwater_kafka_rebalances_total{@}[$__rate_interval]))"),
        ("spans handed over by {{instance}}",
         "sum by (instance) (increase(tailwater_spans_handed_over_total{@}[$__rate_interval]))"),
        width=12,
    ),
]  # fmt: skip

WINDOW = [
    graph(
        "Undecided traces", "Traces that wait in the window for their decision.", "none",
        ("{{instance}}", "sum by (instance) (tailwater_window_traces{@})"), stack=True,
    ),
    graph(
        "Memory in use",
        "As a share of the limit. From 80 % on (less the memory that the budget does not count) the"
        " oldest traces are decided early; at 100 % requests are refused.",
        "percentunit",
        ("{{instance}}", "sum by (instance) (tailwater_memory_used_bytes{@})"
         " / sum by (instance) (tailwater_memory_limit_bytes{@})"),
        steps=[("green", None), ("yellow", 0.8), ("red", 1)],
    ),
    graph(
        "Decisions by trigger",
        "What made a trace be decided when it was. decision_wait: its root never came, or"
        " decision_wait_after_root_received is off. memory: early, because memory was short.",
        "cps", ("{{trigger}}", rate("trigger", "tailwater_decisions_total")), stack=True,
    ),
    graph(
        "Decision lag",
        "From the moment when a trace was due to its decision. The alert TailwaterDecisionLag fires"
        " if the p99 is above 2 s.",
        "s", *quantiles("tailwater_decision_lag_seconds", 0.5, 0.99),
        steps=[("green", None), ("red", 2)],
    ),
    graph(
        "Late spans",
        "Spans that came after the decision about their trace, which they follow.", "cps",
        ("{{decision}}", rate("decision", "tailwater_late_spans_total")), stack=True,
    ),
    graph(
        "Late spans with errors",
        "Late spans with the status ERROR. Those of dropped traces would have kept their trace, had"
        " they come in time: the alert TailwaterLateErrorsDropped.",
        "cps", ("{{decision}}", rate("decision", "tailwater_late_error_spans_total")),
    ),
]  # fmt: skip

DECISIONS = [
    graph(
        "Spans kept and dropped", "What became of the spans.", "cps",
        ("kept", "sum(rate(tailwater_spans_kept_total{@}[$__rate_interval]))"),
        ("dropped: {{reason}}", rate("reason", "tailwater_spans_dropped_total")),
        stack=True,
    ),
    graph(
        "Share of spans that is kept", "Kept, of all decided spans.", "percentunit",
        ("kept", KEPT_SHARE), max=1,
    ),
    graph(
        "Traces kept, by policy",
        "The policy that is credited. More on the dashboard Tailwater / Policies.", "cps",
        ("{{policy}}", rate("policy", "tailwater_traces_kept_total")), stack=True,
    ),
]  # fmt: skip

EXPORTER = [
    graph(
        "Fill of the export queue",
        'The alert TailwaterQueueFilling fires above 50 %; with overflow = "block", requests are'
        " refused from 75 % on.",
        "percentunit",
        ("{{instance}}", "sum by (instance) (tailwater_exporter_queue_bytes{@})"
         " / sum by (instance) (tailwater_exporter_queue_capacity_bytes{@})"),
        steps=[("green", None), ("yellow", 0.5), ("red", 0.75)],
    ),
    graph(
        "Spans sent", "Spans that the backend has taken, and those that wait for it.", "short",
        ("sent per second", "sum(rate(tailwater_exporter_sent_spans_total{@}[$__rate_interval]))"),
        ("waiting", "sum(tailwater_exporter_queue_spans{@})"),
    ),
    graph(
        "Kept spans lost, by reason",
        "Kept spans that will never reach the backend, by reason. Any of them fires the alert"
        " TailwaterSpansLost.",
        "cps", ("{{reason}}", rate("reason", "tailwater_exporter_failed_spans_total")),
    ),
    graph(
        "Export requests", "Attempts, by gRPC code or HTTP status.", "reqps",
        ("{{code}}", rate("code", "tailwater_exporter_request_duration_seconds_count") + " > 0"),
        stack=True,
    ),
    graph(
        "Duration of export requests",
        "From sending a request to the answer of the backend. A request fails after timeout, 5 s by"
        " default.",
        "s", *quantiles("tailwater_exporter_request_duration_seconds", 0.5, 0.99),
    ),
    graph(
        "Retries",
        "Attempts that are made again, by the code that made them fail. The alert"
        " TailwaterBackendFailing fires if more than 10 % of all attempts fail.",
        "reqps", ("{{code}}", rate("code", "tailwater_exporter_retries_total") + " > 0"),
    ),
]  # fmt: skip

LEDGER = [
    graph(
        "Accepted spans that are unaccounted for",
        "accepted - kept - dropped - window - handed over. 0 at rest. While spans move, a scrape"
        " may catch some in between; a difference that stays is a bug: the alert"
        " TailwaterLedgerBroken.",
        "none", ("{{instance}}", UNACCOUNTED["accepted"]), width=12,
    ),
    graph(
        "Kept spans that are unaccounted for",
        "kept - sent - lost - queue. 0 at rest, likewise.",
        "none", ("{{instance}}", UNACCOUNTED["kept"]), width=12,
    ),
]  # fmt: skip

CONFIGURATION = [
    stat(
        "Policies", "Whether the last load of the policies succeeded, on all instances.", "none",
        "min(tailwater_config_last_reload_successful{@})", ONE_IS_GOOD, width=4,
        text=[(1, "loaded"), (0, "reload failed")],
    ),
    stat(
        "Last load", "Since the policies were last loaded, on the instance where that is longest.",
        "s", "max(time() - tailwater_config_last_reload_success_timestamp_seconds{@})", width=4,
    ),
    stat(
        "Credentials",
        "Whether the certificates, keys and tokens in force are those of the files.", "none",
        "min(tailwater_credentials_last_reload_successful{@})", ONE_IS_GOOD, width=4,
        text=[(1, "as in the files"), (0, "reload failed")],
    ),
    stat(
        "First certificate to end",
        "Time left of the certificate that ends first. No data without certificates. The alert"
        " TailwaterCertificateExpiring fires below 14 days.",
        "s", "min(tailwater_tls_certificate_expiry_timestamp_seconds{@} - time())",
        [("red", None), ("yellow", 2 * 86400), ("green", 14 * 86400)], width=4,
    ),
    stat(
        "Panics", "Panics that were contained, in the time range. Must be 0.", "short",
        total("tailwater_task_restarts_total"), NONE_IS_GOOD, width=4, decimals=0,
    ),
    stat(
        "Log lines lost", "Log lines that could not be written, in the time range. Must be 0.",
        "short", total("tailwater_log_lines_lost_total"), NONE_IS_GOOD, width=4, decimals=0,
    ),
    table(
        "Versions", "What runs where.",
        ("Instances", "none", "count by (job, instance, version) (tailwater_build_info{@})"),
        height=6,
    ),
]  # fmt: skip

OVERVIEW = dashboard(
    "Overview",
    "Spans from the receiver to the backend. Each row is a stage, in the order in which spans pass"
    " through them.",
    [
        ("At a glance", GLANCE),
        ("Receiver", RECEIVER),
        ("Receiver: Kafka (with [receiver.kafka])", KAFKA),
        ("Window", WINDOW),
        ("Decisions", DECISIONS),
        ("Exporter", EXPORTER),
        ("Ledger: every span is accounted for", LEDGER),
        ("Configuration and health", CONFIGURATION),
    ],
)
