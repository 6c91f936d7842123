"""Exports kept spans over OTLP/HTTP to a real Collector.

The Collector accepts bodies of at most 256 KiB, on a path of its own, and passes them on to a
sink. Tailwater sends requests of up to 3.5 MiB, with each compression. Every span must arrive
once, whatever the Collector answers to requests that it finds too large.
"""

import argparse
import collections
import json
import shutil
import signal
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "real"))

from children import Children, TroubleError, free_ports, get, wait_until  # noqa: E402
from compare import arguments_of, attributes, exit_code, send, start_collector, stop  # noqa: E402
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service  # noqa: E402
from sink import Sink  # noqa: E402

TRACES = 1000
BODY_BYTES_MAX = 256 << 10
CONFIG = """\
shutdown_timeout = "20s"
receiver.grpc.endpoint = "127.0.0.1:{grpc}"
receiver.http.endpoint = "127.0.0.1:{http}"
telemetry.endpoint = "127.0.0.1:{telemetry}"

[sampling]
decision_wait = "60s"

[exporter.otlp]
protocol = "http/protobuf"
endpoint = "http://127.0.0.1:{backend}/of/a/team/"
compression = "{compression}"

[[policy]]
name = "all"
type = "always_sample"
"""


def request() -> bytes:
    """Spans of about 2 KiB that hardly compress, one a trace."""
    made = service.ExportTraceServiceRequest()
    resource = made.resource_spans.add()
    resource.resource.attributes.extend(attributes([("service.name", "shop")]))
    scope = resource.scope_spans.add()
    for number in range(1, TRACES + 1):
        noise = "".join(chr(33 + (number * place * 7919 >> 3) % 90) for place in range(2000))
        scope.spans.add(
            trace_id=number.to_bytes(16, "big"),
            span_id=number.to_bytes(8, "big"),
            name="span",
            start_time_unix_nano=1_700_000_000_000_000_000,
            end_time_unix_nano=1_700_000_000_010_000_000,
            attributes=attributes([("noise", noise)]),
        )
    return made.SerializeToString()


def collector_config(port: int, sink: Sink) -> dict:
    http = {
        "endpoint": f"127.0.0.1:{port}",
        "traces_url_path": "/of/a/team/v1/traces",
        "max_request_body_size": BODY_BYTES_MAX,
    }
    return {
        "receivers": {"otlp": {"protocols": {"http": http}}},
        "exporters": {
            "otlp_grpc": {
                "endpoint": f"127.0.0.1:{sink.port}",
                "tls": {"insecure": True},
                "sending_queue": {"enabled": False},
            }
        },
        "service": {
            "telemetry": {"metrics": {"level": "none"}},
            "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["otlp_grpc"]}},
        },
    }


def deliver(tailwater: Path, collector: Path, folder: Path, compression: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    sink = Sink()
    with Children(folder) as children:
        ports = dict(zip(("grpc", "http", "telemetry", "backend"), free_ports(4), strict=True))
        config = folder / "collector.yaml"
        # JSON is YAML.
        config.write_text(json.dumps(collector_config(ports["backend"], sink), indent=1))
        peer = start_collector(children, collector, ["--config", config], [ports["backend"]])
        config = folder / "tailwater.toml"
        config.write_text(CONFIG.format(compression=compression, **ports))
        process = children.start("tailwater", tailwater, "run", "--config", config)
        health = f"http://127.0.0.1:{ports['telemetry']}/-/ready"
        wait_until("Tailwater is ready", lambda: get(health)[0] == 200, 60)
        send(ports["http"], [request()])
        process.send_signal(signal.SIGTERM)
        stop(process, "tailwater", children)
        peer.send_signal(signal.SIGTERM)
        stop(peer, "collector", children)
    spans = collections.Counter(span["span_id"] for span in sink.spans())
    requests = len(sink.requests)
    sink.stop()
    if len(spans) != TRACES or set(spans.values()) != {1}:
        total = sum(spans.values())
        raise TroubleError(f"{compression}: {len(spans)} of {TRACES} spans arrived, {total} in all")
    if requests < 2:
        raise TroubleError(f"{compression}: nothing was too large for the Collector")
    print(f"{compression}: {TRACES} spans in {requests} requests of at most {BODY_BYTES_MAX} bytes")


def run(told: argparse.Namespace) -> int:
    for compression in ("none", "gzip", "zstd"):
        deliver(told.tailwater, told.collector, told.folder / compression, compression)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(run, arguments_of(__doc__)))
