"""A real Collector whose Kafka exporter writes the topic."""

import signal
from collections.abc import Iterable
from pathlib import Path

import grpc
from broker import fixed_ports
from children import Children, TroubleError, wait_until
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from traffic import request

HERE = Path(__file__).resolve().parent
CONFIG = (HERE / "collector.yaml").read_text()
PAGE = HERE.parent.parent / "docs/src/operations/kafka.md"


class Collector:
    """Runs collector.yaml, with the addresses of this run in it."""

    def __init__(
        self, binary: Path, children: Children, broker: str, topic: str, name: str
    ) -> None:
        self.children, self.name = children, name
        (port,) = fixed_ports(1)
        text = CONFIG.replace("0.0.0.0:4317", f"127.0.0.1:{port}")
        text = text.replace("kafka:9092", broker).replace("topic: otlp_spans", f"topic: {topic}")
        text += "  telemetry:\n    metrics:\n      level: none\n"
        config = children.folder / f"{name}.yaml"
        config.write_text(text)
        self.process = children.start(name, binary, "--config", config)
        self.endpoint = f"127.0.0.1:{port}"
        self.channel = grpc.insecure_channel(self.endpoint)
        self.stub = service_grpc.TraceServiceStub(self.channel)
        wait_until("the Collector takes requests", self.is_up, 60)

    def is_up(self) -> bool:
        if self.process.poll() is not None:
            raise TroubleError(f"the Collector ended\n{self.children.tail(self.name, 40)}")
        try:
            self.stub.Export(request([]), timeout=2)
        except grpc.RpcError:
            return False
        return True

    def send(self, spans: Iterable[Span]) -> None:
        """Sends once: it is acknowledged when it is in the queue of the exporter."""
        self.stub.Export(request(spans), timeout=120, wait_for_ready=True)

    def stop(self) -> None:
        """It writes its pending spans before it ends."""
        self.process.send_signal(signal.SIGTERM)
        if code := self.process.wait(timeout=60):
            raise TroubleError(f"the Collector: exit code {code}\n{self.children.tail(self.name)}")


def page_problems() -> list[str]:
    """The page on Kafka shows the configuration that these tests run."""
    if CONFIG.strip() not in PAGE.read_text():
        return [f"{PAGE.name} does not contain {HERE.name}/collector.yaml as it is"]
    return []
