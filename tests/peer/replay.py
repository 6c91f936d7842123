"""Files that a real Collector writes, and `tailwater replay`.

The Collector's file exporter writes the same traces in each of its forms. What `tailwater replay`
reports of each file must equal what a running Tailwater with the same policies counts of the same
traffic, policy by policy.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "real"))

import convert  # noqa: E402
import metrics  # noqa: E402
import tailwater  # noqa: E402
from children import Children, TroubleError, free_ports, get, wait_until  # noqa: E402
from compare import (  # noqa: E402
    WAIT_S,
    arguments_of,
    encoded,
    exit_code,
    post,
    spans_in,
    start_collector,
    stop,
    undecided,
)
from generate import policy_sets  # noqa: E402
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service  # noqa: E402
from sink import Sink  # noqa: E402

POLICIES = [
    {
        "name": "no-health-checks",
        "type": "drop",
        "policies": [{"type": "string_attribute", "key": "http.route", "values": ["/health"]}],
    },
    {
        "name": "errors-in-production",
        "type": "and",
        "policies": [
            {"type": "status_code", "status_codes": ["ERROR"]},
            {"type": "string_attribute", "key": "env", "values": ["prod"]},
        ],
    },
    {"name": "cart", "type": "string_attribute", "key": "http.route", "values": ["/api/cart"]},
    {"name": "slow", "type": "latency", "threshold_ms": 100},
    {"name": "errors", "type": "status_code", "status_codes": ["ERROR"]},
    {"name": "a-quarter", "type": "probabilistic", "sampling_percentage": 25},
]
# With this gate, zstd compresses a file as a whole, not each request by itself.
WHOLE_FILES = "exporter.file.nativeCompression"
ZSTD = {"compression": "zstd"}
# The files that the Collector writes without and with the gate, and their exporters' settings.
FILES = {
    f"-{WHOLE_FILES}": {
        "lines.json": {"format": "json"},
        "frames.proto": {"format": "proto"},
        "zstd-frames.json": {"format": "json", **ZSTD},
        "zstd-frames.proto": {"format": "proto", **ZSTD},
    },
    f"+{WHOLE_FILES}": {
        "lines.json.zst": {"format": "json", **ZSTD},
        "frames.proto.zst": {"format": "proto", **ZSTD},
    },
}

Figures = dict[str, Any]


def traffic() -> list[bytes]:
    """Requests; spans of half of the traces come in several of them."""
    sets = policy_sets(first=0, count=10, seed=1)
    spread = [encoded(spans) for one in sets for spans in one.requests]
    return [convert.traces(0), *spread, convert.traces(1)]


def by_collector(binary: Path, gate: str, requests: list[bytes], folder: Path) -> None:
    """Writes the files of a gate."""
    with Children(folder) as children:
        (port,) = free_ports(1)
        forms = FILES[gate].items()
        exporters = {f"file/{name}": {"path": str(folder / name)} | form for name, form in forms}
        pipeline = {"receivers": ["otlp"], "exporters": list(exporters)}
        made = {
            "receivers": {"otlp": {"protocols": {"http": {"endpoint": f"127.0.0.1:{port}"}}}},
            "exporters": exporters,
            "service": {
                "telemetry": {"metrics": {"level": "none"}},
                "pipelines": {"traces": pipeline},
            },
        }
        config = folder / "collector.yaml"
        # JSON is YAML.
        config.write_text(json.dumps(made, indent=1))
        arguments = ["--config", config, "--feature-gates", gate]
        process = start_collector(children, binary, arguments, [port])
        post(port, requests)
        # It writes its pending spans when it stops.
        process.send_signal(signal.SIGTERM)
        stop(process, "collector", children)


def by_service(
    binary: Path, requests: list[bytes], traces: int, sink: Sink, folder: Path
) -> metrics.Metrics:
    """The metrics of a running Tailwater once it has decided and exported everything."""
    with Children(folder) as children:
        ports = dict(zip(("grpc", "http", "telemetry"), free_ports(3), strict=True))
        config = folder / "tailwater.toml"
        tailwater.write_config(config, POLICIES, WAIT_S, sink=sink.port, **ports)
        process = children.start("tailwater", binary, "run", "--config", config)
        telemetry = f"http://127.0.0.1:{ports['telemetry']}"

        def ready() -> bool:
            if process.poll() is not None:
                raise TroubleError(f"Tailwater ended\n{children.tail('tailwater', 40)}")
            return get(f"{telemetry}/-/ready")[0] == 200

        def at_rest() -> metrics.Metrics | None:
            now = metrics.parse(get(f"{telemetry}/metrics")[1].decode())
            return None if undecided([ports], [traces]) or unbalanced(now) else now

        wait_until("Tailwater is ready", ready, 60)
        # Requests in protobuf that follow each other are one request. So all spans are there
        # before the first decision, however slow the machine is.
        post(ports["http"], [b"".join(requests)])
        counted = wait_until("all is decided and exported", at_rest, 120)
        process.send_signal(signal.SIGTERM)
        stop(process, "tailwater", children)
    return counted


def unbalanced(now: metrics.Metrics) -> list[str]:
    """The equations of the ledger that do not hold."""
    accepted, window = now.total("receiver_accepted_spans_total"), now.total("window_spans")
    kept, dropped = now.total("spans_kept_total"), now.total("spans_dropped_total")
    sent, failed = now.total("exporter_sent_spans_total"), now.total("exporter_failed_spans_total")
    queued = now.total("exporter_queue_spans")
    sums = [
        ("accepted = kept + dropped", accepted, kept + dropped),
        ("kept = sent", kept, sent),
        ("in the window, the queue, or lost", 0, window + queued + failed),
    ]
    return [f"{what}: {one:g} and {other:g}" for what, one, other in sums if one != other]


def of_service(counted: metrics.Metrics) -> Figures:
    return {
        "traces": counted.total("traces_kept_total") + counted.total("traces_dropped_total"),
        "spans": counted.total("spans_kept_total") + counted.total("spans_dropped_total"),
        "kept traces": counted.total("traces_kept_total"),
        "kept spans": counted.total("spans_kept_total"),
        "kept traces by policy": counted.by("traces_kept_total", "policy"),
        "kept spans by policy": counted.by("spans_kept_total", "policy"),
        "dropped traces by policy": counted.by("traces_dropped_total", "policy"),
        "matched traces by policy": counted.by("policy_matches_total", "policy"),
    }


def of_replay(binary: Path, config: Path, files: list[Path]) -> Figures:
    command = [binary, "replay", "--format", "json", "--config", config, *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        raise TroubleError(f"{files[0].name} cannot be replayed\n{done.stderr}")
    answer = json.loads(done.stdout)
    read, kept = answer["input"], answer["result"]
    if read["skipped"] or read["weighted"] or read["decided_early"]:
        raise TroubleError(f"{files[0].name} is not read as all of the traffic: {read}")

    def by_policy(key: str) -> dict[str, float]:
        return {one["policy"]: one[key] for one in kept["policies"] if one[key]}

    return {
        "traces": read["traces"],
        "spans": read["spans"],
        "kept traces": kept["traces"],
        "kept spans": kept["spans"],
        "kept traces by policy": by_policy("kept_traces"),
        "kept spans by policy": by_policy("kept_spans"),
        "dropped traces by policy": by_policy("dropped_traces"),
        "matched traces by policy": by_policy("matched_traces"),
    }


def check_service(counted: metrics.Metrics, sent: dict, received: dict) -> Figures:
    """The figures of the service, once they agree with what it got and what it exported."""
    figures = of_service(counted)
    ends = {
        "traces": len(sent),
        "spans": sum(sent.values()),
        "kept traces": len(received),
        "kept spans": sum(received.values()),
    }
    problems = unbalanced(counted)
    wrong = [(what, count) for what, count in ends.items() if figures[what] != count]
    problems += [f"{what}: {figures[what]:g}, not {count}" for what, count in wrong]
    problems += [f"{t.hex()} was cut" for t, spans in received.items() if spans != sent.get(t)]
    # A policy that does nothing would show nothing.
    acting = figures["kept traces by policy"] | figures["dropped traces by policy"]
    problems += [f"{one['name']} decides nothing" for one in POLICIES if one["name"] not in acting]
    if problems:
        raise TroubleError("\n".join(["the service is wrong", *problems]))
    return figures


def run(arguments: argparse.Namespace) -> int:
    folder = arguments.folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    requests = traffic()
    whole = service.ExportTraceServiceRequest.FromString(b"".join(requests))
    sent = spans_in([whole])
    sink = Sink()
    try:
        counted = by_service(arguments.tailwater, requests, len(sent), sink, folder)
        with sink.lock:
            received = spans_in(sink.requests)
    finally:
        sink.stop()
    running = check_service(counted, sent, received)
    for what, figure in running.items():
        shown = dict(sorted(figure.items())) if isinstance(figure, dict) else figure
        print(f"the service, {what}: {shown}")
    failed = 0
    for place, gate in enumerate(FILES):
        written = folder / f"collector-{place}"
        written.mkdir()
        by_collector(arguments.collector, gate, requests, written)
        for name in FILES[gate]:
            config = folder / "tailwater.toml"
            replayed = of_replay(arguments.tailwater, config, [written / name])
            differing = [what for what in running if replayed[what] != running[what]]
            failed += bool(differing)
            word = "FAIL" if differing else "ok  "
            print(f"{word}  {name}: {replayed['kept traces']} of {len(sent)} traces kept")
            for what in differing:
                print(f"      {what}: {replayed[what]}, the service {running[what]}")
    files = sum(map(len, FILES.values()))
    print(f"{files - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(exit_code(run, arguments_of(__doc__)))
