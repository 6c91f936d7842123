"""The answers of a real Jaeger about traces, and `tailwater replay`.

Jaeger stores the traces of `convert.py` in memory, and is asked for each in both
of its forms, and for many at once. `tailwater replay` must report of these files what it reports of
the requests that Jaeger was sent, policy by policy.
"""

import argparse
import json
import shutil
import signal
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "real"))

import convert  # noqa: E402
import tailwater  # noqa: E402
from children import Children, TroubleError, free_ports, get, wait_until  # noqa: E402
from compare import attributes, exit_code, listens, post, stop  # noqa: E402
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service  # noqa: E402
from replay import of_replay  # noqa: E402

SERVICE = "shop"
# Each alone: the traces that it matches are compared.
POLICIES = [
    {"type": "status_code", "status_codes": ["ERROR"]},
    {"type": "status_code", "status_codes": ["OK"]},
    {"type": "latency", "threshold_ms": 50},
    {"type": "span_duration", "threshold_ms": 50},
    {"type": "span_count", "min_spans": 3},
    {"type": "string_attribute", "key": "http.route", "values": ["/api", "/health"]},
    {"type": "string_attribute", "key": "env", "values": ["prod"]},
    {"type": "numeric_attribute", "key": "http.status_code", "min_value": 400},
    {"type": "numeric_attribute", "key": "shard", "max_value": 3},
    {"type": "boolean_attribute", "key": "cached", "value": True},
    {"type": "trace_state", "key": "vendor", "values": ["a"]},
    {"type": "span_kind", "kinds": ["SERVER"]},
    {"type": "span_kind", "kinds": ["INTERNAL"]},
    {"type": "root_span"},
    {"type": "span_name", "values": ["pay"]},
    {"type": "service_name", "values": [SERVICE]},
    {"type": "span_event", "names": ["exception"]},
    {"type": "span_event", "key": "type", "values": ["Timeout"]},
    {"type": "probabilistic", "sampling_percentage": 25},
]


def traffic() -> service.ExportTraceServiceRequest:
    """Traces of one service, because Jaeger searches by service."""
    made = service.ExportTraceServiceRequest.FromString(convert.traces(0))
    for resource in made.resource_spans:
        resource.resource.attributes.extend(attributes([("service.name", SERVICE)]))
    return made


def configuration(otlp: int, query: int, grpc: int) -> dict:
    return {
        "service": {
            "extensions": ["jaeger_storage", "jaeger_query"],
            "pipelines": {
                "traces": {"receivers": ["otlp"], "exporters": ["jaeger_storage_exporter"]}
            },
            "telemetry": {"metrics": {"level": "none"}},
        },
        "extensions": {
            "jaeger_query": {
                "storage": {"traces": "memory"},
                "enable_tracing": False,
                "http": {"endpoint": f"127.0.0.1:{query}"},
                "grpc": {"endpoint": f"127.0.0.1:{grpc}"},
            },
            "jaeger_storage": {"backends": {"memory": {"memory": {"max_traces": 100_000}}}},
        },
        "receivers": {"otlp": {"protocols": {"http": {"endpoint": f"127.0.0.1:{otlp}"}}}},
        "exporters": {"jaeger_storage_exporter": {"trace_storage": "memory"}},
    }


def answers(told: argparse.Namespace, request: service.ExportTraceServiceRequest) -> dict:
    """The files with what Jaeger answers, by form."""
    ids = sorted({one.scope_spans[0].spans[0].trace_id.hex() for one in request.resource_spans})
    with Children(told.folder) as children:
        otlp, query, grpc = free_ports(3)
        config = told.folder / "jaeger.yaml"
        # JSON is YAML.
        config.write_text(json.dumps(configuration(otlp, query, grpc), indent=1))
        process = children.start("jaeger", told.jaeger, "--config", config)

        def ready() -> bool:
            if process.poll() is not None:
                raise TroubleError(f"Jaeger ended\n{children.tail('jaeger', 40)}")
            return listens(otlp) and listens(query)

        wait_until("Jaeger is ready", ready, 60)
        post(otlp, [request.SerializeToString()])
        address = f"http://127.0.0.1:{query}/api"
        search = f"traces?service={SERVICE}&limit={len(ids)}&start=1&end=4000000000000000"
        asked = {
            "/api/traces/ID": [f"traces/{one}" for one in ids],
            "/api/v3/traces/ID": [f"v3/traces/{one}" for one in ids],
            "/api/traces?service=": [search],
        }
        found: dict[str, list[Path]] = {}
        for form, paths in asked.items():
            for path in paths:
                code, body = get(f"{address}/{path}")
                if code != 200:
                    raise TroubleError(f"Jaeger answers {path} with {code}: {body[:200]!r}")
                files = found.setdefault(form, [])
                files.append(told.folder / f"{len(found)}-{len(files)}.json")
                files[-1].write_bytes(body)
        process.send_signal(signal.SIGTERM)
        stop(process, "jaeger", children)
    return found


def run(told: argparse.Namespace) -> int:
    shutil.rmtree(told.folder, ignore_errors=True)
    told.folder.mkdir(parents=True)
    request = traffic()
    sent = told.folder / "sent.pb"
    sent.write_bytes(request.SerializeToString())
    config = told.folder / "tailwater.toml"
    named = [{"name": f"p{place}", **policy} for place, policy in enumerate(POLICIES)]
    ports = dict(zip(("grpc", "http", "telemetry", "sink"), range(1, 5), strict=True))
    tailwater.write_config(config, named, 1, **ports)
    wanted = of_replay(told.tailwater, config, [sent])
    traces = wanted["traces"]
    matched = wanted["matched traces by policy"]
    telling = sum(0 < matched.get(policy["name"], 0) < traces for policy in named)
    failed = 0
    for form, files in answers(told, request).items():
        seen = of_replay(told.tailwater, config, files)
        differing = [what for what in wanted if seen[what] != wanted[what]]
        failed += bool(differing)
        word = "FAIL" if differing else "ok  "
        print(f"{word}  {form}: {seen['traces']} traces, {seen['spans']} spans, {len(files)} files")
        for what in differing:
            print(f"      {what}: {seen[what]}, of what was sent {wanted[what]}")
    print(f"{len(POLICIES)} policies, {telling} of which match some traces and not others")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("tailwater", "jaeger", "folder"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    return exit_code(run, parser)


if __name__ == "__main__":
    sys.exit(main())
