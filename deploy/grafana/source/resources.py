"""What does it cost, and what runs out first?"""

from panels import NONE_IS_GOOD, dashboard, graph, quantiles, rate, stat, total


def by_instance(expr):
    return ("{{instance}}", f"sum by (instance) ({expr})")


PROCESS = [
    graph(
        "CPU", "Cores in use.", "none",
        by_instance("rate(process_cpu_seconds_total{@}[$__rate_interval])"),
    ),
    graph(
        "CPU per span",
        "CPU time for each accepted span. It rises when a policy with many conditions or regular"
        " expressions comes, and when requests carry few spans each.",
        "s",
        ("{{instance}}",
         "sum by (instance) (rate(process_cpu_seconds_total{@}[$__rate_interval]))"
         " / sum by (instance)"
         " (rate(tailwater_receiver_accepted_spans_total{@}[$__rate_interval]))"),
    ),
    graph(
        "File descriptors", "As a share of the limit. At the limit no connection is accepted.",
        "percentunit",
        ("{{instance}}", "sum by (instance) (process_open_fds{@})"
         " / sum by (instance) (process_max_fds{@})"),
        steps=[("green", None), ("red", 0.9)],
    ),
]  # fmt: skip

MEMORY = [
    graph(
        "Memory in use, of the limit",
        "Bytes that count towards memory_limit_mib. From 80 % on (less the overhead) the oldest"
        " traces are decided early; at 100 % requests are refused.",
        "percentunit",
        ("{{instance}}", "sum by (instance) (tailwater_memory_used_bytes{@})"
         " / sum by (instance) (tailwater_memory_limit_bytes{@})"),
        steps=[("green", None), ("yellow", 0.8), ("red", 1)],
    ),
    graph(
        "Memory, counted and not",
        "resident: what the operating system has given to the process. used: what the budget"
        " counts. overhead: the difference, at most a fifth of the limit, for which the thresholds"
        " leave room.",
        "bytes",
        ("resident", "sum(process_resident_memory_bytes{@})"),
        ("used", "sum(tailwater_memory_used_bytes{@})"),
        ("overhead", "sum(tailwater_memory_overhead_bytes{@})"),
        ("limit", "sum(tailwater_memory_limit_bytes{@})"),
    ),
    graph(
        "Window and export queue", "Encoded bytes of spans.", "bytes",
        ("window", "sum(tailwater_window_bytes{@})"),
        ("export queue", "sum(tailwater_exporter_queue_bytes{@})"), stack=True,
    ),
]  # fmt: skip

WINDOW = [
    graph(
        "Undecided traces", "Traces in the window.", "none",
        by_instance("tailwater_window_traces{@}"), stack=True,
    ),
    graph(
        "Bytes per span", "Mean length of an encoded span in the window.", "bytes",
        ("{{instance}}", "sum by (instance) (tailwater_window_bytes{@})"
         " / sum by (instance) (tailwater_window_spans{@})"),
    ),
    graph(
        "Traces decided early",
        "Share of the decisions that memory forced. The alert TailwaterDecidingEarly fires above"
        " 1 %.",
        "percentunit",
        ("{{instance}}",
         'sum by (instance) (rate(tailwater_decisions_total{@, trigger="memory"}'
         "[$__rate_interval]))"
         " / sum by (instance) (rate(tailwater_decisions_total{@}[$__rate_interval]))"),
        steps=[("green", None), ("red", 0.01)],
    ),
    graph(
        "Decisions forgotten early",
        "Remembered decisions that had to leave before decision_cache_ttl, because all of them may"
        " take a quarter of the memory limit.",
        "cps", by_instance("rate(tailwater_decisions_forgotten_early_total{@}[$__rate_interval])"),
    ),
    graph(
        "Decision lag",
        "p99 of the time from the moment when a trace was due to its decision. It rises when CPU is"
        " short.",
        "s", *quantiles("tailwater_decision_lag_seconds", 0.99, by="instance"),
        steps=[("green", None), ("red", 2)],
    ),
    graph(
        "Stalls",
        "Share of the time in which the process did not run: paused, starved of CPU, or swapped"
        " out.",
        "percentunit", by_instance("rate(tailwater_stalled_seconds_total{@}[$__rate_interval])"),
    ),
]  # fmt: skip

CONNECTIONS = [
    graph(
        "Open connections", "Open connections of senders.", "none",
        by_instance("tailwater_receiver_connections{@}"), stack=True, width=12,
    ),
    graph(
        "Connections closed", "By what closed them.", "cps",
        ("{{reason}}", rate("reason", "tailwater_receiver_connections_closed_total")),
        width=12,
    ),
]  # fmt: skip

DURABILITY = [
    graph(
        "Durability: bytes on disk",
        "Allocated by the logs. At max_size_mib requests are refused as disk. No data unless"
        " [durability] is on.",
        "bytes", ("{{log}}", "sum by (log) (tailwater_durability_bytes{@})"), stack=True,
    ),
    graph(
        "Durability: duration of syncs",
        'With mode = "power" a request waits for the next one.', "s",
        *quantiles("tailwater_durability_sync_seconds", 0.5, 0.99),
    ),
    graph(
        "Durability: errors and damaged records",
        "Errors of writes and syncs, and records that could not be read at a start. Any error fires"
        " the alert TailwaterDurabilityFailing.",
        "cps",
        ("errors: {{log}}", rate("log", "tailwater_durability_errors_total")),
        ("damaged records",
         "sum(rate(tailwater_durability_damaged_records_total{@}[$__rate_interval]))"),
    ),
]  # fmt: skip

HEALTH = [
    graph(
        "Panics", "Panics that were contained, by task. Must be 0.", "cps",
        ("{{task}}", rate("task", "tailwater_task_restarts_total")), width=12,
    ),
    stat(
        "Log lines lost", "Log lines that could not be written, in the time range. Must be 0.",
        "short", total("tailwater_log_lines_lost_total"), NONE_IS_GOOD, width=4, decimals=0,
    ),
    stat(
        "Strings repaired",
        "Strings in kept spans, in the time range, that were not UTF-8: a sender is faulty.",
        "short", total("tailwater_repaired_strings_total"), width=4, decimals=0,
    ),
    stat(
        "Links removed",
        "Span links in kept spans, in the time range, with ids of wrong length: a sender is"
        " faulty.",
        "short", total("tailwater_removed_links_total"), width=4, decimals=0,
    ),
    stat(
        "Youngest instance", "Time since the last start of an instance.", "s",
        "min(time() - process_start_time_seconds{@})", width=12,
    ),
]  # fmt: skip

RESOURCES = dashboard(
    "Resources",
    "CPU, memory, connections and disk of the instances, and how near each is to its limit.",
    [
        ("Process", PROCESS),
        ("Memory", MEMORY),
        ("Window", WINDOW),
        ("Connections", CONNECTIONS),
        ("Durability (with [durability])", DURABILITY),
        ("Health", HEALTH),
    ],
)
