"""Compares what backends got with what was sent, span by span."""

from collections import Counter
from dataclasses import dataclass, field

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
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


def compare(traces: list[Trace], sinks: list[Sink]) -> Result:
    spans, counts = arrived(sinks)
    result = Result(traces=len(traces))
    for trace in traces:
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
