"""What does each policy keep, and what would a change do?"""

from panels import dashboard, graph, quantiles, rate, stat, table, total, variable

P = ', policy=~"$policy"'


def by_policy(metric, more=""):
    return rate("policy", metric, P + more)


def in_range(metric):
    return f"sum by (policy) (increase({metric}{{@{P}}}[$__range]))"


SUMMARY = [
    table(
        "Policies in the time range",
        "Traces and spans are counted at the policy that is credited: the one that proposes the"
        " highest percentage. A trace counts as a match of every policy that matches it. The policy"
        " none stands for traces that no policy matches.",
        ("Traces kept", "short", in_range("tailwater_traces_kept_total")),
        ("Traces dropped", "short", in_range("tailwater_traces_dropped_total")),
        ("Traces matched", "short", in_range("tailwater_policy_matches_total")),
        ("Spans kept", "short", in_range("tailwater_spans_kept_total")),
        ("Share of all kept spans", "percentunit",
         in_range("tailwater_spans_kept_total")
         + " / on () group_left () sum(increase(tailwater_spans_kept_total{@}[$__range]))"),
    ),
]  # fmt: skip

RATES = [
    graph(
        "Traces kept", "By the policy that is credited.", "cps",
        ("{{policy}}", by_policy("tailwater_traces_kept_total")), stack=True,
    ),
    graph(
        "Traces dropped",
        "By the policy that is credited: the one with the highest percentage, or the first drop"
        " policy that matches, or none.",
        "cps", ("{{policy}}", by_policy("tailwater_traces_dropped_total")), stack=True,
    ),
    graph(
        "Traces matched", "Decided traces that a policy matched, credited or not.", "cps",
        ("{{policy}}", by_policy("tailwater_policy_matches_total")),
    ),
    graph(
        "Share of the credited traces that is kept",
        "The percentage at work: sampling_percentage, lowered by a limit or a budget.",
        "percentunit",
        ("{{policy}}", by_policy("tailwater_traces_kept_total")
         + f" / ({by_policy('tailwater_traces_kept_total')}"
         + f" + {by_policy('tailwater_traces_dropped_total')})"),
        max=1,
    ),
    graph(
        "Spans kept",
        "Late spans under the policy of their trace. Compare it with a limit in spans_per_second.",
        "cps", ("{{policy}}", by_policy("tailwater_spans_kept_total")), stack=True,
    ),
    graph(
        "Spans dropped",
        "decision: with their trace. late: after it. trace_bytes: over max_trace_bytes_kib.", "cps",
        ("{{policy}}: {{reason}}",
         rate("policy, reason", "tailwater_spans_dropped_total", P) + " > 0"),
        stack=True,
    ),
]  # fmt: skip

SHADOW = [
    graph(
        "Traces that shadow policies match",
        "By what each policy would have changed: kept (a dropped trace would have been kept),"
        " dropped (a kept one would have been dropped), none. No data without shadow policies.",
        "cps",
        ("{{policy}}: {{effect}}", rate("policy, effect", "tailwater_shadow_traces_total", P)),
        width=12,
    ),
    graph(
        "Spans that shadow policies would change",
        "Spans per second that would be kept in addition, or dropped in addition, with the policy"
        " in force.",
        "cps",
        ("{{policy}}: {{effect}}",
         rate("policy, effect", "tailwater_shadow_spans_total", P + ', effect=~"kept|dropped"')),
        width=12,
    ),
]  # fmt: skip

BUDGETS = [
    graph(
        "Level of budgets",
        "The most spans per second that a budget keeps of one kind of trace. Kinds below it are"
        " kept whole. No data without budget policies in spans_per_second.",
        "cps",
        ("{{policy}}", f"max by (policy) (tailwater_budget_level_spans_per_second{{@{P}}})"),
    ),
    graph(
        "Level of budgets in bytes", "The same for budgets in bytes_per_second.", "Bps",
        ("{{policy}}", f"max by (policy) (tailwater_budget_level_bytes_per_second{{@{P}}})"),
    ),
    graph(
        "Spans that budgets keep",
        "Spans kept per second by policies with a budget, and the budget of all instances together."
        " The alert TailwaterBudgetExceeded fires if an instance keeps more than 110 % of its budget.",
        "cps",
        ("{{policy}}", by_policy("tailwater_spans_kept_total")
         + f" and on (policy) tailwater_budget_keys{{@{P}}}"),
        ("budget of {{policy}}",
         f"sum by (policy) (tailwater_budget_limit_spans_per_second{{@{P}}})"),
    ),
    graph(
        "Kinds of traces", "Kinds that budgets and rare policies know at present.", "none",
        ("budget {{policy}}", f"sum by (policy) (tailwater_budget_keys{{@{P}}})"),
        ("rare {{policy}}", f"sum by (policy) (tailwater_rare_kinds{{@{P}}})"), width=12,
    ),
    graph(
        "Traces of kinds that found no room",
        "Traces of new kinds while the table of a policy is full. Those of a budget share one kind,"
        " those of a rare policy get no guarantee: raise max_keys, or use fewer keys.",
        "cps",
        ("budget {{policy}}", by_policy("tailwater_budget_overflow_traces_total")),
        ("rare {{policy}}", by_policy("tailwater_rare_overflow_traces_total")), width=12,
    ),
]  # fmt: skip

TRACES = [
    graph(
        "Duration of traces",
        "Latest end minus earliest start of decided traces: choose threshold_ms of latency policies"
        " by it.",
        "s", *quantiles("tailwater_trace_duration_seconds", 0.5, 0.9, 0.99),
    ),
    graph(
        "Spans of traces", "Spans of decided traces.", "none",
        *quantiles("tailwater_trace_spans", 0.5, 0.9, 0.99),
    ),
    graph(
        "Late spans", "Spans that came after the decision about their trace.", "cps",
        ("{{decision}}", rate("decision", "tailwater_late_spans_total")),
        ("{{decision}}, with an error", rate("decision", "tailwater_late_error_spans_total")),
    ),
]  # fmt: skip

STAMPS = [
    stat(
        "Spans without a stamp",
        "Kept spans in the time range whose tracestate could not be stamped. Metrics that are"
        " computed from kept spans count them once each.",
        "short", total("tailwater_unstamped_spans_total"), decimals=0, width=6,
    ),
    stat(
        "Thresholds erased",
        "Kept spans in the time range whose incoming ot=th contradicted the randomness of the"
        " trace: a sampler in front works inconsistently.",
        "short", total("tailwater_inconsistent_threshold_spans_total"), decimals=0, width=6,
    ),
    table(
        "Policies that end", "Time left of policies with `expires`.",
        ("Time left", "s",
         f"min by (policy) (tailwater_policy_expiry_timestamp_seconds{{@{P}}} - time())"),
        width=12, height=6, steps=[("red", None), ("yellow", 0), ("green", 86400)],
    ),
]  # fmt: skip

POLICIES = dashboard(
    "Policies",
    "What each policy matches, keeps and drops; what shadow policies would change; budgets.",
    [
        ("Summary", SUMMARY),
        ("Policies over time", RATES),
        ("Shadow policies", SHADOW),
        ("Budgets and rare kinds (with policies of these types)", BUDGETS),
        ("Traces", TRACES),
        ("Stamps and expiry", STAMPS),
    ],
    [
        variable(
            "policy", "Policy",
            'tailwater_traces_kept_total{job=~"$job", instance=~"$instance"}',
            "The policies by name",
        ),
    ],
)  # fmt: skip
