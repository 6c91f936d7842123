"""Compares what backends got with what was sent, span by span."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from quarter import is_chosen
from sink import Sink
from traffic import Trace

OWN_ATTRIBUTES = ("tailwater.policy", "tailwater.trigger")
Key = tuple[bytes, bytes]


@dataclass
class Result:
    """The outcome of the spans of some traces."""

    traces: int = 0
    spans: int = 0
    kept: int = 0
    lost: int = 0
    split: int = 0
    unwanted: int = 0
    changed: int = 0
    doubles: int = 0
    problems: list[str] = field(default_factory=list)
    missing: set[Key] = field(default_factory=set)

    def __str__(self) -> str:
        return (
            f"{self.traces} traces, {self.spans} spans; {self.kept} spans to be kept, "
            f"{self.lost} lost,"
            f" {self.split} traces split, {self.unwanted} spans of dropped traces,"
            f" {self.changed} changed, {self.doubles} sent again"
        )


def without_stamps(span: Span) -> bytes:
    plain = Span()
    plain.CopyFrom(span)
    if plain.trace_state.startswith("ot=th:"):
        plain.trace_state = ""
    own = [pair for pair in plain.attributes if pair.key not in OWN_ATTRIBUTES]
    del plain.attributes[:]
    plain.attributes.extend(own)
    # The Collector and SDKs set flags that say nothing here.
    plain.flags = 0
    return plain.SerializeToString(deterministic=True)


def spans_of(request: ExportTraceServiceRequest) -> dict[Key, Span]:
    return {
        (span.trace_id, span.span_id): span
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    }


def arrived(sinks: list[Sink]) -> tuple[dict[Key, Span], Counter[Key]]:
    spans: dict[Key, Span] = {}
    counts: Counter[Key] = Counter()
    for sink in sinks:
        with sink.lock:
            requests = list(sink.requests)
        for request in requests:
            found = spans_of(request)
            spans |= found
            counts.update(found.keys())
    return spans, counts


def expect_by_log(
    traces: list[Trace], records: Iterable[tuple[int, bytes]], wait_s: float
) -> str:
    """Says of each trace what its records must lead to, by the times at which they were appended.

    An error that comes once its trace is due is late, whatever has held it up.
    """
    times: dict[Key, int] = {}
    for time, value in records:
        for key in spans_of(ExportTraceServiceRequest.FromString(value)):
            times.setdefault(key, time)
    late = 0
    for trace in traces:
        at = [times.get((trace.id, span.span_id)) for span in trace.spans]
        if None in at or not trace.failing or is_chosen(trace.id):
            continue
        failed = Status.STATUS_CODE_ERROR
        spans = zip(at, trace.spans, strict=True)
        error = min(time for time, span in spans if span.status.code == failed)
        if error >= min(at) + wait_s * 1000:
            late, trace.expected = late + 1, 0
        # Its decision may be forgotten by the time of its last span: the margin is 2.5 waits.
        trace.is_torn = max(at) - min(at) > 2 * wait_s * 1000
    torn = sum(trace.is_torn for trace in traces)
    return f"{late} traces got their error after their decision, {torn} were torn apart by a delay"


def compare(traces: list[Trace], sinks: list[Sink]) -> Result:
    spans, counts = arrived(sinks)
    result = Result(traces=len(traces))
    for trace in traces:
        if trace.is_torn:
            continue
        found = [spans.get((trace.id, span.span_id)) for span in trace.spans]
        here = sum(one is not None for one in found)
        result.spans += len(trace.spans)
        result.kept += trace.expected
        result.split += 0 < here < len(trace.spans)
        if trace.expected:
            result.lost += len(trace.spans) - here
            pairs = zip(trace.spans, found, strict=True)
            result.missing |= {(trace.id, span.span_id) for span, got in pairs if got is None}
        else:
            result.unwanted += here
        if here not in (0, len(trace.spans)) or bool(here) != bool(trace.expected):
            told = f"{trace.id.hex()}: {here} of {len(trace.spans)} arrived"
            result.problems.append(f"{told}, {trace.expected} expected")
        for sent, got in zip(trace.spans, found, strict=True):
            if got is not None and without_stamps(got) != without_stamps(sent):
                result.changed += 1
                result.problems.append(f"sent {sent}, got {got}")
    known = {(trace.id, span.span_id) for trace in traces for span in trace.spans}
    result.doubles = sum(count - 1 for key, count in counts.items() if key in known)
    strange = counts.keys() - known
    if strange:
        result.problems.append(f"{len(strange)} spans that nobody sent")
    return result
