"""Plays the shop's plan through the Python OpenTelemetry SDK, and writes down what the SDK made.

    send.py --plan plan.json --endpoint 127.0.0.1:4317 --sent python.json --node-port node.port

`node/send.mjs` is the same program in the other language, with the same plan, output and steps.
"""

import argparse
import json
import random
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opentelemetry import trace as api
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from values import native_attributes, typed_attributes

PAUSE_S = 0.15  # between the exports of a round
LATE_S = 2.5  # after the last root: the decision is due after 1 s
WAIT_S = 30
HAS_IS_REMOTE, IS_REMOTE = 0x100, 0x200

W3C = TraceContextTextMapPropagator()


class Recorder(SpanExporter):
    """Exports, and remembers what was exported and when."""

    def __init__(self, endpoint: str, sent: list[dict[str, Any]]) -> None:
        self.inner = OTLPSpanExporter(endpoint=endpoint, insecure=True)
        self.sent = sent
        self.undelivered = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        sent_at = time.time()
        result = self.inner.export(spans)
        if result is SpanExportResult.SUCCESS:
            times = {"sent_at": sent_at, "acked_at": time.time()}
            self.sent += [written(span) | times for span in spans]
        else:
            self.undelivered += len(spans)
        return result

    def shutdown(self) -> None:
        self.inner.shutdown()


def written(span: ReadableSpan) -> dict[str, Any]:
    """A span as the SDK made it. The SDK sends neither the sampled flag nor a link's tracestate."""
    context, parent, scope = span.get_span_context(), span.parent, span.instrumentation_scope
    assert context and scope
    return {
        "trace_id": api.format_trace_id(context.trace_id),
        "span_id": api.format_span_id(context.span_id),
        "parent_id": api.format_span_id(parent.span_id) if parent else "",
        "tracestate": context.trace_state.to_header(),
        "flags": flags(parent),
        "name": span.name,
        "kind": span.kind.name,
        "start": str(span.start_time),
        "end": str(span.end_time),
        "attributes": typed_attributes(span.attributes),
        "events": [
            {"name": e.name, "at": str(e.timestamp), "attributes": typed_attributes(e.attributes)}
            for e in span.events
        ],
        "links": [
            {
                "trace_id": api.format_trace_id(link.context.trace_id),
                "span_id": api.format_span_id(link.context.span_id),
                "flags": flags(link.context),
                "attributes": typed_attributes(link.attributes),
            }
            for link in span.links
        ],
        "status": {"code": span.status.status_code.name, "message": span.status.description or ""},
        "resource": typed_attributes(span.resource.attributes),
        "resource_schema_url": span.resource.schema_url,
        "scope": {
            "name": scope.name,
            "version": scope.version,
            "schema_url": scope.schema_url,
            "attributes": typed_attributes(scope.attributes),
        },
    }


def flags(context: api.SpanContext | None) -> int:
    return HAS_IS_REMOTE | (IS_REMOTE if context and context.is_remote else 0)


class Service:
    """One service: its own provider, resource and connection; exports only when told to."""

    def __init__(self, planned: dict[str, Any], endpoint: str, sent: list[dict[str, Any]]) -> None:
        resource = Resource.create(
            native_attributes(planned["resource"]), planned["resource_schema_url"]
        )
        self.provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self.recorder = Recorder(endpoint, sent)
        # No service has so many spans in one round that the processor would export by itself.
        self.provider.add_span_processor(
            BatchSpanProcessor(self.recorder, 2048, schedule_delay_millis=3_600_000)
        )
        scope = planned["scope"]
        self.tracer = self.provider.get_tracer(
            scope["name"], scope["version"], scope["schema_url"], {"shop.scope": "läden"}
        )

    def flush(self) -> None:
        flushed = self.provider.force_flush(WAIT_S * 1000)
        if not flushed or self.recorder.undelivered:
            sys.exit(f"the SDK did not deliver {self.recorder.undelivered or 'all'} spans")


class Shop:
    def __init__(self, plan: dict[str, Any], endpoint: str) -> None:
        self.sent: list[dict[str, Any]] = []
        self.kinds: dict[str, str] = {}
        self.services = {
            name: Service(planned, endpoint, self.sent)
            for name, planned in plan["services"].items()
        }

    def open(self, trace: dict[str, Any]) -> list[tuple[dict[str, Any], api.Span]]:
        """Start the spans of a trace, parents first, and return each with its plan."""
        opened: list[tuple[dict[str, Any], api.Span]] = []
        for planned in trace["spans"]:
            context = parent_context(trace, opened, planned)
            opened.append((planned, self.start(planned, context)))
        trace_id = opened[0][1].get_span_context().trace_id
        self.kinds[api.format_trace_id(trace_id)] = trace["kind"]
        return opened

    def start(self, planned: dict[str, Any], context: Context) -> api.Span:
        span = self.services[planned["service"]].tracer.start_span(
            planned["name"],
            context,
            api.SpanKind[planned["kind"]],
            native_attributes(planned["attributes"]),
            [link(one) for one in planned["links"]],
            int(planned["start"]),
        )
        for event in planned["events"]:
            span.add_event(event["name"], native_attributes(event["attributes"]), int(event["at"]))
        if planned["status"]:
            code = api.StatusCode[planned["status"]["code"]]
            span.set_status(api.Status(code, planned["status"]["message"] or None))
        return span


def link(planned: dict[str, Any]) -> api.Link:
    context = api.SpanContext(int(planned["trace_id"], 16), int(planned["span_id"], 16), True)
    return api.Link(context, native_attributes(planned["attributes"]))


def parent_context(trace: dict[str, Any], opened: list, planned: dict[str, Any]) -> Context:
    """The parent of a span: directly in its own service, through W3C headers in another one."""
    if planned["parent"] is None:
        return incoming_context(trace["incoming"])
    parent_plan, parent = opened[planned["parent"]]
    context = api.set_span_in_context(parent, Context())
    if parent_plan["service"] == planned["service"]:
        return context
    return W3C.extract(headers(context), Context())


def headers(context: Context) -> dict[str, str]:
    carrier: dict[str, str] = {}
    W3C.inject(carrier, context)
    return carrier


def incoming_context(incoming: dict[str, Any] | None) -> Context:
    if not incoming:
        return Context()
    carrier = {"traceparent": f"00-{incoming['trace_id']}-{incoming['span_id']}-01"}
    if incoming["tracestate"]:
        carrier["tracestate"] = incoming["tracestate"]
    return W3C.extract(carrier, Context())


def finish(opened: list, services: list[str]) -> None:
    """End the spans of these services, children first."""
    for planned, span in reversed(opened):
        if planned["service"] in services:
            span.end(int(planned["end"]))


def play_round(shop: Shop, one: dict[str, Any], late: list[str]) -> None:
    traces = [shop.open(trace) for trace in one["traces"]]
    for opened in traces:
        finish(opened, late)
    for wave in one["waves"]:
        for service in wave:
            for opened in traces:
                finish(opened, [service])
            shop.services[service].flush()
        time.sleep(PAUSE_S)


def play_calls(shop: Shop, calls: list[dict[str, Any]], port: int) -> None:
    """Checks out with the payment service of the other language, over HTTP, one by one."""
    for index, call in enumerate(calls):
        opened = shop.open(call["calling"])
        context = api.set_span_in_context(opened[call["from"]][1], Context())
        post(port, f"/charge/{index}", headers(context))
        finish(opened, list(shop.services))
        for service in ("cart", "inventory", "gateway"):
            shop.services[service].flush()


def post(port: int, path: str, carrier: dict[str, str]) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", b"", carrier)
    urllib.request.urlopen(request, timeout=WAIT_S).close()


def wait_for_port(path: Path) -> int:
    """The Node shop says where it listens when it has finished its own rounds."""
    give_up = time.monotonic() + WAIT_S
    while not path.exists():
        if time.monotonic() > give_up:
            sys.exit("the Node shop does not listen")
        time.sleep(0.05)
    return int(path.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--sent", type=Path, required=True)
    parser.add_argument("--node-port", type=Path, required=True)
    arguments = parser.parse_args()

    plan = json.loads(arguments.plan.read_text())
    random.seed(plan["seed"])  # the SDK draws its ids from this generator
    shop = Shop(plan, arguments.endpoint)
    for one in plan["rounds"]["python"]:
        play_round(shop, one, plan["late_services"])
    port = wait_for_port(arguments.node_port)
    play_calls(shop, plan["calls"], port)
    if plan["late_services"]:
        time.sleep(LATE_S)
    for service in plan["late_services"]:
        shop.services[service].flush()
    post(port, "/close", {})
    arguments.sent.write_text(json.dumps({"kinds": shop.kinds, "spans": shop.sent}))


if __name__ == "__main__":
    main()
