"""A backend: an OTLP/gRPC server that takes every request and remembers what it was sent."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

from values import attributes_from_otlp


class Sink(service_grpc.TraceServiceServicer):
    """Listens on the loopback address from the start, on a free port unless it is given one.

    gRPC's limit of 4 MiB a message stays, as most backends have it.
    """

    def __init__(self, port: int = 0) -> None:
        self.lock = threading.Lock()
        self.requests: list[service.ExportTraceServiceRequest] = []
        self.port = port
        self.come_back()

    def Export(self, request: Any, context: Any) -> service.ExportTraceServiceResponse:  # noqa: N802
        with self.lock:
            self.requests.append(request)
        return service.ExportTraceServiceResponse()

    def spans(self) -> list[dict[str, Any]]:
        """Every span received so far, in the form in which the senders write theirs."""
        with self.lock:
            requests = list(self.requests)
        return [
            written(span, scope, resource)
            for request in requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def come_back(self) -> None:
        """Listens again on its port, with all that it remembers."""
        self.server = grpc.server(ThreadPoolExecutor(max_workers=8))
        service_grpc.add_TraceServiceServicer_to_server(self, self.server)
        self.port = self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        self.server.start()

    def stop(self) -> None:
        """Takes nothing any more, unless it comes back."""
        self.server.stop(grace=None).wait(timeout=10)


def written(
    span: trace_pb2.Span, scope: trace_pb2.ScopeSpans, resource: trace_pb2.ResourceSpans
) -> dict[str, Any]:
    return {
        "trace_id": span.trace_id.hex(),
        "span_id": span.span_id.hex(),
        "parent_id": span.parent_span_id.hex(),
        "tracestate": span.trace_state,
        "flags": span.flags,
        "name": span.name,
        "kind": trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        "start": str(span.start_time_unix_nano),
        "end": str(span.end_time_unix_nano),
        "attributes": attributes_from_otlp(span.attributes),
        "events": [
            {
                "name": event.name,
                "at": str(event.time_unix_nano),
                "attributes": attributes_from_otlp(event.attributes),
            }
            for event in span.events
        ],
        "links": [
            {
                "trace_id": link.trace_id.hex(),
                "span_id": link.span_id.hex(),
                "flags": link.flags,
                "attributes": attributes_from_otlp(link.attributes),
            }
            for link in span.links
        ],
        "status": {
            "code": trace_pb2.Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
            "message": span.status.message,
        },
        "resource": attributes_from_otlp(resource.resource.attributes),
        "resource_schema_url": resource.schema_url,
        "scope": {
            "name": scope.scope.name,
            "version": scope.scope.version,
            "schema_url": scope.schema_url,
            "attributes": attributes_from_otlp(scope.scope.attributes),
        },
    }
