"""Traces with a known outcome, and the ways in which they reach a topic."""

import json
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from confluent_kafka import Producer
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span, Status
from quarter import is_chosen

FAILING = 0.1
SENT_AT_ONCE = 2_000


@dataclass
class Trace:
    """The spans of a trace in the order in which they are sent, the root last."""

    id: bytes
    spans: list[Span]
    failing: bool
    resource: str = "shop"
    expected: int = field(init=False)
    # Whether its spans came so far apart that they may have become two traces.
    is_torn: bool = False

    def __post_init__(self) -> None:
        self.expected = len(self.spans) if self.failing or is_chosen(self.id) else 0


def make_trace(
    rng: random.Random, spans: int, payload: int = 40, fails_first: bool = False
) -> Trace:
    trace_id = rng.randbytes(16)
    failing = rng.randrange(1 if fails_first else spans) if rng.random() < FAILING else None
    now = time.time_ns()
    ids = [rng.randbytes(8) for _ in range(spans)]
    made = []
    for place in range(spans):
        span = Span(
            trace_id=trace_id,
            span_id=ids[place],
            parent_span_id=b"" if place == spans - 1 else ids[-1],
            name=f"operation {place}",
            kind=Span.SPAN_KIND_SERVER if place == spans - 1 else Span.SPAN_KIND_CLIENT,
            start_time_unix_nano=now + place,
            end_time_unix_nano=now + place + 1_000_000,
        )
        span.attributes.add(key="payload").value.string_value = rng.randbytes(payload).hex()[
            :payload
        ]
        fails = place == failing
        span.status.code = Status.STATUS_CODE_ERROR if fails else Status.STATUS_CODE_UNSET
        made.append(span)
    return Trace(trace_id, made, failing is not None)


def request(spans: Iterable[Span], service: str = "shop") -> ExportTraceServiceRequest:
    resource = ResourceSpans()
    resource.resource.attributes.add(key="service.name").value.string_value = service
    resource.scope_spans.add().spans.extend(spans)
    return ExportTraceServiceRequest(resource_spans=[resource])


def as_json(message: ExportTraceServiceRequest) -> bytes:
    """OTLP/JSON, which writes ids in hexadecimal where protobuf's JSON has base64."""
    told = MessageToDict(message, use_integers_for_enums=True)
    spans = message.resource_spans[0].scope_spans[0].spans
    for written, span in zip(
        told["resourceSpans"][0]["scopeSpans"][0]["spans"], spans, strict=True
    ):
        written["traceId"], written["spanId"] = span.trace_id.hex(), span.span_id.hex()
        if span.parent_span_id:
            written["parentSpanId"] = span.parent_span_id.hex()
    return json.dumps(told).encode()


class Topic:
    """Writes records as the Collector's exporter does: one trace each, with its id as the key."""

    def __init__(self, address: str, name: str, codec: str = "none", **settings: object) -> None:
        told = {
            "bootstrap.servers": address,
            "compression.type": codec,
            "linger.ms": 5,
            "message.max.bytes": 80 << 20,
            "queue.buffering.max.messages": 1_000_000,
            "queue.buffering.max.kbytes": 1 << 20,
            "log_level": 0,
        }
        self.producer = Producer(told | settings)
        self.name = name
        self.failed: list[str] = []

    def put(self, value: bytes | None, key: bytes | None, **where: int) -> None:
        self.producer.produce(self.name, value, key, on_delivery=self.delivered, **where)
        self.producer.poll(0)

    def delivered(self, error: object, _: object) -> None:
        if error:
            self.failed.append(str(error))

    def put_trace(self, trace: Trace, parts: int = 1, **where: int) -> None:
        for part in range(parts):
            spans = trace.spans[part::parts]
            self.put(request(spans).SerializeToString(), trace.id.hex().encode(), **where)

    def flush(self) -> None:
        left = self.producer.flush(60)
        if left or self.failed:
            raise AssertionError(f"{left} records are not written: {self.failed[:3]}")


class Load(threading.Thread):
    """Traces at a steady rate; their spans are sent one by one, `apart` seconds between them.

    `send` takes the spans that are due at a time.
    """

    def __init__(
        self,
        send: Callable[[list[Span]], None],
        rate: int,
        seed: int,
        spans: int = 4,
        apart: float = 0.5,
        fails_first: bool = False,
    ) -> None:
        super().__init__(daemon=True)
        self.send, self.rate, self.spans, self.apart = send, rate, spans, apart
        self.fails_first = fails_first
        self.rng = random.Random(seed)
        self.traces: list[Trace] = []
        self.ending = threading.Event()
        self.trouble: Exception | None = None

    def run(self) -> None:
        try:
            self.play()
        except Exception as trouble:  # noqa: BLE001  told by `finish`
            self.trouble = trouble

    def play(self) -> None:
        began, waiting = time.monotonic(), []
        while not self.ending.is_set() or waiting:
            now = time.monotonic() - began
            while not self.ending.is_set() and len(self.traces) < now * self.rate:
                trace = make_trace(self.rng, self.spans, fails_first=self.fails_first)
                waiting += [(now + n * self.apart, span) for n, span in enumerate(trace.spans)]
                self.traces.append(trace)
            due = [span for at, span in waiting if at <= now]
            waiting = [one for one in waiting if one[0] > now]
            # After a delay there is much at once, and gRPC takes 4 MiB.
            for first in range(0, len(due), SENT_AT_ONCE):
                self.send(due[first : first + SENT_AT_ONCE])
            time.sleep(0.05)

    def finish(self) -> list[Trace]:
        """Sends the remaining spans of the traces that have begun, and returns all traces."""
        self.ending.set()
        self.join(120)
        if self.trouble or self.is_alive():
            raise AssertionError(f"the load did not end: {self.trouble}")
        return self.traces
