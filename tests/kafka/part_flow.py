"""A real SDK -> a real Collector -> the topic -> Tailwater -> a backend."""

import random
import time

from collectors import Collector, page_problems
from compare import OWN_ATTRIBUTES
from instance import at_rest, ledger
from opentelemetry import trace as api
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.export import SpanExportResult
from quarter import is_chosen
from run import Run
from send import written
from values import comparable

TRACES, SPANS = 400, 5


class Recorder(SpanExporter):
    """Remembers every span as the SDK made it."""

    def __init__(self) -> None:
        self.spans: list[dict] = []

    def export(self, spans: list[ReadableSpan]) -> SpanExportResult:
        self.spans += map(written, spans)
        return SpanExportResult.SUCCESS


def play(endpoint: str, rng: random.Random) -> list[dict]:
    """Traces of several services, with attributes, events, links and errors."""
    recorder = Recorder()
    providers = []
    for name in ("gateway", "cart", "payment"):
        resource = Resource.create({"service.name": name, "host.id": f"{name}-1"})
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(recorder))
        exporter = OTLPSpanExporter(endpoint=endpoint, insecure=True)
        provider.add_span_processor(BatchSpanProcessor(exporter, 50_000, 100))
        providers.append(provider)
    tracers = [one.get_tracer("shop", "1.2") for one in providers]
    for number in range(TRACES):
        with tracers[0].start_as_current_span("checkout", kind=api.SpanKind.SERVER) as root:
            root.set_attribute("order", number)
            link = api.Link(root.get_span_context(), {"why": "retry"})
            for place in range(SPANS - 1):
                tracer = tracers[rng.randrange(3)]
                attributes = {"ratio": rng.random(), "items": ["a", "b"], "first": place == 0}
                with tracer.start_as_current_span(
                    "call", attributes=attributes, links=[link]
                ) as one:
                    one.add_event("cache miss", {"key": f"läden-{place}"})
                    if rng.random() < 0.02:
                        one.set_status(api.Status(api.StatusCode.ERROR, "no stock"))
        if number % 50 == 0:
            time.sleep(0.1)
    for provider in providers:
        provider.force_flush()
        provider.shutdown()
    return recorder.spans


def is_kept(spans: list[dict]) -> bool:
    chosen = is_chosen(bytes.fromhex(spans[0]["trace_id"]))
    return chosen or any(span["status"]["code"] == "ERROR" for span in spans)


def plain(span: dict) -> object:
    """Without what Tailwater adds, and without flags of the SDK's exporter that vary."""
    attributes = [pair for pair in span["attributes"] if pair[0] not in OWN_ATTRIBUTES]
    stamp = {"tracestate": ""} if span["tracestate"].startswith("ot=th:") else {}
    return comparable(span | stamp | {"attributes": attributes})


def by_id(spans: list[dict]) -> dict[tuple[str, str], dict]:
    return {(span["trace_id"], span["span_id"]): span for span in spans}


def part(run: Run) -> None:
    run.check("the page on Kafka shows the Collector's configuration", page_problems())
    run.broker.create("flow", 6)
    tailwater = run.instance("flow", "flow").start()
    collector = Collector(
        run.told.collector, run.children, run.broker.address, "flow", "flow-collector"
    )
    sent = play(collector.endpoint, random.Random(run.told.seed))
    collector.stop()
    run.wait_for_commits("flow", "flow")
    at_rest([tailwater])
    traces: dict[str, list[dict]] = {}
    for span in sent:
        traces.setdefault(span["trace_id"], []).append(span)
    wanted = by_id([one for spans in traces.values() if is_kept(spans) for one in spans])
    listed = tailwater.sink.spans()
    got = by_id(listed)
    run.say(f"{len(sent)} spans of {len(traces)} traces; {len(wanted)} spans kept")
    faults = [f"{key} is missing" for key in wanted.keys() - got.keys()]
    faults += [f"{key} ought to have been dropped" for key in got.keys() - wanted.keys()]
    run.check("the backend has every span of every kept trace, and no other", faults)
    run.check(
        "each span is what the SDK made",
        [
            f"sent {wanted[k]}, got {got[k]}"
            for k in wanted.keys() & got.keys()
            if plain(wanted[k]) != plain(got[k])
        ],
    )
    run.check("no span came twice", [] if len(listed) == len(got) else ["spans came twice"])
    accepted = tailwater.metrics().total("receiver_accepted_spans_total", transport="kafka")
    run.check(
        "all spans are counted as accepted over Kafka",
        [] if accepted == len(sent) else [f"{accepted:.0f} of {len(sent)}"],
    )
    run.check("the ledger", ledger(tailwater))
    tailwater.stop()
