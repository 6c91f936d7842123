"""The checkout of the shop: charges cards. One charge in ten is slow, one in twenty fails.

Settings are those of the OpenTelemetry SDK, and PORT.
"""

import os
import random
import signal
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(insecure=True)))
trace.set_tracer_provider(provider)
tracer = trace.get_tracer("shop")


def charge() -> int:
    with tracer.start_as_current_span("charge card", kind=SpanKind.CLIENT) as span:
        span.set_attribute("payment.amount", random.randint(1, 200))
        slow = random.random() < 0.1
        time.sleep(random.uniform(0.6, 1.2) if slow else random.uniform(0.005, 0.05))
        if random.random() < 0.05:
            span.set_status(Status(StatusCode.ERROR, "card declined"))
            return 502
        return 200


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        attributes = {"http.request.method": "POST", "http.route": self.path}
        parent = propagate.extract(self.headers)
        with tracer.start_as_current_span(
            f"POST {self.path}", parent, SpanKind.SERVER, attributes
        ) as span:
            status = charge()
            span.set_attribute("http.response.status_code", status)
            if status != 200:
                span.set_status(Status(StatusCode.ERROR))
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """No line for each request."""


server = ThreadingHTTPServer(("", int(os.environ.get("PORT", "8080"))), Handler)
# `shutdown` waits for `serve_forever`, which runs in the thread that takes signals.
signal.signal(signal.SIGTERM, lambda *_: Thread(target=server.shutdown).start())
server.serve_forever()
provider.shutdown()
