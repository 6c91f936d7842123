"""The checks after a run: each is a function from the evidence to the faults in it."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import decision
from decision import Decision
from metrics import AT_REST, Metrics
from values import comparable

DECISION_WAIT_S = 3
AFTER_ROOT_S = 1
OWN_ATTRIBUTES = ("tailwater.policy", "tailwater.trigger")

Span = dict[str, Any]
Problems = list[str]


@dataclass
class Evidence:
    """The spans of the senders and of the sink, and the reports of Tailwater and Prometheus."""

    kinds: dict[str, str]  # trace id -> what the plan calls the trace
    sent: list[Span]
    received: list[Span]
    late_services: list[str]
    looked_up: dict[str, dict[str, Any]]  # trace id -> /-/decisions/<id>
    before: Metrics  # a scrape before the first span
    after: Metrics  # a scrape at rest
    prometheus: Metrics
    traces: dict[str, "Trace"] = field(init=False)
    arrived: dict[str, list[Span]] = field(init=False)

    def __post_init__(self) -> None:
        self.traces = {
            trace_id: Trace(trace_id, spans, self.late_services)
            for trace_id, spans in by_trace(self.sent).items()
        }
        self.arrived = by_trace(self.received)

    def kept(self) -> Iterator["Trace"]:
        return (trace for trace in self.traces.values() if trace.decision.kept)

    def pairs(self) -> Iterator[tuple["Trace", Span, Span]]:
        """Trace, span as sent and span as received, of every span that was expected and arrived."""
        received = {(span["trace_id"], span["span_id"]): span for span in self.received}
        for trace in self.kept():
            for span in trace.spans:
                other = received.get((span["trace_id"], span["span_id"]))
                if other:
                    yield trace, span, other


class Trace:
    """A trace as it was sent, and its expected decision."""

    def __init__(self, trace_id: str, spans: list[Span], late_services: list[str]) -> None:
        self.id = trace_id
        # The sort is stable: spans of one request stay in their order.
        self.spans = sorted(spans, key=lambda span: span["sent_at"])
        self.late = [span for span in self.spans if service_of(span) in late_services]
        self.on_time = [span for span in self.spans if service_of(span) not in late_services]
        self.root = next((span for span in self.spans if not span["parent_id"]), None)
        self.decision: Decision = decision.decide(trace_id, self.on_time)
        self.trigger = "root_received" if self.root else "decision_wait"

    def stamped(self) -> Span:
        """The span that carries policy and trigger: the root, else the first received."""
        return self.root or self.spans[0]


def by_trace(spans: list[Span]) -> dict[str, list[Span]]:
    traces = defaultdict(list)
    for span in spans:
        traces[span["trace_id"]].append(span)
    return dict(traces)


def service_of(span: Span) -> str:
    return dict(span["resource"])["service.name"]["string"]


def differences(what: str, got: Any, expected: Any) -> Problems:
    return [] if got == expected else [f"{what} is {got}, expected {expected}"]


# The run itself: the facts that the other checks take for granted.


def sent_in_time(e: Evidence) -> Problems:
    """Otherwise the machine stalled, and decisions that came too early are not a fault."""
    problems = []
    for trace in e.traces.values():
        first = min(span["sent_at"] for span in trace.on_time)
        due = first + DECISION_WAIT_S
        if trace.root:
            due = min(due, trace.root["sent_at"] + AFTER_ROOT_S)
            if trace.root["acked_at"] + AFTER_ROOT_S >= first + DECISION_WAIT_S:
                problems.append(f"{trace.id}: the root left too late after the first span")
        over = max(span["acked_at"] for span in trace.on_time) - due
        if over >= 0:
            problems.append(
                f"{trace.id}: the last span was acknowledged {over:.2f} s after the deadline"
            )
        if any(span["sent_at"] < due for span in trace.late):
            problems.append(f"{trace.id}: a late span left before the decision was due")
    return problems


def planned_kinds(e: Evidence) -> Problems:
    """The independent decision agrees with the planned outcome of each trace."""
    problems = []
    for trace_id, kind in e.kinds.items():
        own_kind = kind.removeprefix("incoming, ").removeprefix("call, ")
        first_word = own_kind.replace(",", " ").split()[0]
        expected = {"error": "errors", "slow": "slow"}.get(first_word, "baseline")
        got = e.traces[trace_id].decision.policy
        problems += differences(f"{trace_id} ({kind}): policy", got, expected)
    outcomes = {(t.decision.policy, t.decision.kept) for t in e.traces.values()}
    wanted = {("errors", True), ("slow", True), ("baseline", True), ("baseline", False)}
    return problems + differences("what happens to traces", outcomes, wanted)


# Spans that arrive at the sink.


def kept_traces(e: Evidence) -> Problems:
    expected = {trace.id for trace in e.kept()}
    missing = [f"{i} ({e.kinds.get(i)}) is missing" for i in sorted(expected - e.arrived.keys())]
    return missing + [
        f"{i} ({e.kinds.get(i)}) arrived but ought to be dropped"
        for i in sorted(e.arrived.keys() - expected)
    ]


def kept_traces_whole(e: Evidence) -> Problems:
    """Every span of a kept trace, late ones included, exactly once."""
    problems = []
    for trace in e.kept():
        sent = Counter(span["span_id"] for span in trace.spans)
        got = Counter(span["span_id"] for span in e.arrived.get(trace.id, []))
        problems += differences(
            f"{trace.id}: spans", sorted(got.elements()), sorted(sent.elements())
        )
    return problems


def spans_unchanged(e: Evidence) -> Problems:
    """Every field, attribute by attribute and in order.

    Tracestate and Tailwater's own attributes have their own checks.
    """
    problems = []
    for _, sent, got in e.pairs():
        own = [attribute for attribute in got["attributes"] if attribute[0] in OWN_ATTRIBUTES]
        theirs = [attribute for attribute in got["attributes"] if attribute not in own]
        for key, value in (got | {"attributes": theirs}).items():
            if key != "tracestate" and comparable(value) != comparable(sent[key]):
                where = f"{sent['trace_id']} {sent['span_id']} {sent['name']!r}: {key}"
                problems += differences(where, value, sent[key])
    return problems


# Stamps.


def thresholds(e: Evidence) -> Problems:
    problems = []
    plain = {"errors": "ot=th:0", "slow": "ot=th:0", "baseline": "ot=th:e6666666666666"}
    for trace, sent, got in e.pairs():
        where = f"{trace.id} {got['span_id']}: tracestate"
        if not sent["tracestate"]:
            problems += differences(where, got["tracestate"], plain[trace.decision.policy])
            continue
        th = decision.ot_members(got["tracestate"]).get("th")
        expected = decision.stamp(trace.decision, sent["tracestate"])
        problems += differences(f"{where} {got['tracestate']!r} th", th, expected)
    return problems


def tracestate_of_others(e: Evidence) -> Problems:
    """`ot` comes first and once; other vendors' members and an incoming `rv` stay as they were."""
    problems = []
    for trace, sent, got in e.pairs():
        before, after = sent["tracestate"], got["tracestate"]
        where = f"{trace.id} {got['span_id']}: tracestate {after!r}"
        if not after.startswith("ot=") or after.count("ot=") != 1:
            problems.append(f"{where} does not start with its only ot member")
        problems += differences(
            f"{where}: other members", decision.other_members(after), decision.other_members(before)
        )
        rv_after, rv_before = (decision.ot_members(state).get("rv") for state in (after, before))
        problems += differences(f"{where}: rv", rv_after, rv_before)
    return problems


def own_attributes(e: Evidence) -> Problems:
    """Policy and trigger, once each, on the root span (else the first received), on no other."""
    problems = []
    for trace, sent, got in e.pairs():
        own = sorted([key, value] for key, value in got["attributes"] if key in OWN_ATTRIBUTES)
        expected = []
        if sent is trace.stamped():
            written = (trace.decision.policy, trace.trigger)
            expected = [
                [key, {"string": v}] for key, v in zip(OWN_ATTRIBUTES, written, strict=True)
            ]
        problems += differences(
            f"{trace.id} {got['span_id']} {got['name']!r}: own attributes", own, expected
        )
    return problems


# Reports of Tailwater about single traces.


def decisions_of_kept(e: Evidence) -> Problems:
    return [p for trace in e.traces.values() if trace.decision.kept for p in wrong_answer(e, trace)]


def decisions_of_dropped(e: Evidence) -> Problems:
    return [
        p for trace in e.traces.values() if not trace.decision.kept for p in wrong_answer(e, trace)
    ]


def wrong_answer(e: Evidence, trace: Trace) -> Problems:
    answer, expected = e.looked_up[trace.id], trace.decision
    try:
        numbers = (
            decision.parse_threshold(answer["threshold"]),
            int(answer["randomness"], 16),
        )
        got = (answer["decision"], answer["policy"], answer["trigger"], *numbers)
    except (KeyError, TypeError, ValueError) as error:
        return [f"{trace.id}: {error!r} in {answer}"]
    verdict = "kept" if expected.kept else "dropped"
    wanted = (verdict, expected.policy, trace.trigger, expected.threshold, expected.randomness)
    return differences(f"{trace.id} ({e.kinds[trace.id]}): the answer", got, wanted)


# The counters.


def ledger(e: Evidence) -> Problems:
    """The two equations of the ledger, and both ends: what the SDKs sent and what the sink got."""
    m = e.after
    accepted, sent = m.total("receiver_accepted_spans_total"), m.total("exporter_sent_spans_total")
    kept, dropped = m.total("spans_kept_total"), m.total("spans_dropped_total")
    failed, queued = m.total("exporter_failed_spans_total"), m.total("exporter_queue_spans")
    return (
        differences("accepted", accepted, len(e.sent))
        + differences("kept + dropped + window", kept + dropped + m.total("window_spans"), accepted)
        + differences("sent + failed + queue", sent + failed + queued, kept)
        + differences("sent", sent, len(e.received))
    )


def both_receivers(e: Evidence) -> Problems:
    """Without these the checks above would prove nothing about OTLP/JSON."""
    accepted = e.after.by("receiver_accepted_spans_total", "transport")
    return [f"{t}: {accepted.get(t)}" for t in ("grpc", "http") if not accepted.get(t)]


def nothing_refused_or_failed(e: Evidence) -> Problems:
    names = (
        "receiver_refused_spans_total",
        "receiver_refused_requests_total",
        "exporter_failed_spans_total",
        "unstamped_spans_total",
        "task_restarts_total",
        "window_traces",
        "window_spans",
        "exporter_queue_spans",
    )
    return [p for name in names for p in differences(name, e.after.total(name), 0)]


def traces_by_policy(e: Evidence) -> Problems:
    kept = Counter(t.decision.policy for t in e.traces.values() if t.decision.kept)
    dropped = Counter(t.decision.policy for t in e.traces.values() if not t.decision.kept)
    return differences(
        "traces_kept_total", e.after.by("traces_kept_total", "policy"), kept
    ) + differences("traces_dropped_total", e.after.by("traces_dropped_total", "policy"), dropped)


def spans_by_policy(e: Evidence) -> Problems:
    kept: Counter = Counter()
    dropped: Counter = Counter()
    for trace in e.traces.values():
        policy = trace.decision.policy
        if trace.decision.kept:
            kept[policy] += len(trace.spans)
        else:
            dropped[policy, "decision"] += len(trace.on_time)
            dropped[policy, "late"] += len(trace.late)
    got_dropped = e.after.by("spans_dropped_total", "policy", "reason")
    return differences(
        "spans_kept_total", e.after.by("spans_kept_total", "policy"), kept
    ) + differences("spans_dropped_total", got_dropped, dropped)


def triggers(e: Evidence) -> Problems:
    expected = Counter(trace.trigger for trace in e.traces.values())
    return differences("decisions_total", e.after.by("decisions_total", "trigger"), expected)


def late_spans(e: Evidence) -> Problems:
    late: Counter = Counter()
    errors: Counter = Counter()
    for trace in e.traces.values():
        verdict = "kept" if trace.decision.kept else "dropped"
        late[verdict] += len(trace.late)
        errors[verdict] += sum(span["status"]["code"] == "ERROR" for span in trace.late)
    return differences(
        "late_spans_total", e.after.by("late_spans_total", "decision"), late
    ) + differences(
        "late_error_spans_total", e.after.by("late_error_spans_total", "decision"), +errors
    )


def series_from_the_start(e: Evidence) -> Problems:
    """Every series exists from the start: rates and alerts would miss the first count otherwise."""
    before, after = e.before.at_rest(), e.after.at_rest()
    names = {name for name, _ in before}
    return (
        [f"{name} is missing" for name in AT_REST if name not in names]
        + [
            f"{key} was not there before the first span"
            for key in sorted(after.keys() - before.keys())
        ]
        + [f"{key} was {value} before the first span" for key, value in before.items() if value]
    )


def prometheus_agrees(e: Evidence) -> Problems:
    ours, theirs = e.after.at_rest(), e.prometheus.at_rest()
    return [
        f"{key}: /metrics says {ours.get(key)}, Prometheus {theirs.get(key)}"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]


CHECKS = {
    "every trace was sent within its window, late spans after it": sent_in_time,
    "the plan has errors, slow traces and both sides of the baseline": planned_kinds,
    "the sink has every trace that must be kept and no other": kept_traces,
    "every kept trace is whole, each span there once": kept_traces_whole,
    "every kept span is as its SDK made it, attribute by attribute": spans_unchanged,
    "ot=th is right on every kept span": thresholds,
    "ot comes first, other vendors' tracestate and rv stay": tracestate_of_others,
    "policy and trigger stand on the root span alone": own_attributes,
    "every kept trace's decision can be looked up": decisions_of_kept,
    "every dropped trace's decision can be looked up": decisions_of_dropped,
    "the ledger is exact from the SDKs to the sink": ledger,
    "spans came in over gRPC and as JSON over HTTP": both_receivers,
    "nothing was refused, failed, unstamped or left behind": nothing_refused_or_failed,
    "traces kept and dropped are counted by policy": traces_by_policy,
    "spans kept and dropped are counted by policy and reason": spans_by_policy,
    "decisions are counted by trigger": triggers,
    "late spans and late errors are counted": late_spans,
    "every series was there at 0 before the first span": series_from_the_start,
    "a real Prometheus has the same values": prometheus_agrees,
}
