"""Configurations of the Collector, and what `tailwater convert` makes of them, decide alike.

Each processor of the files in `configs/` runs in a real Collector as it is written, and its
conversion in Tailwater. Both get the same traces and must keep the same. Attributes have the type
that the policies expect and durations are whole milliseconds, because compare.py covers the
intended differences.
"""

import argparse
import json
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "real"))

import collector  # noqa: E402
from children import Children, TroubleError, free_ports, get, wait_until  # noqa: E402
from compare import (  # noqa: E402
    arguments_of,
    attributes,
    exit_code,
    send_all,
    spans_by_trace,
    start_collector,
    stop,
)
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service  # noqa: E402
from sink import Sink  # noqa: E402

TRACES = 150
START = 1_700_000_000_000_000_000
MS = 1_000_000
ROUTES = ["/api", "/health", "/v2/cart", "/vx/cart", "/٣/", "/v٣/", "[x", "x", "cart\n"]
SETTINGS = """\
shutdown_timeout = "20s"
receiver.grpc.endpoint = "127.0.0.1:{}"
receiver.http.endpoint = "127.0.0.1:{}"
telemetry.endpoint = "127.0.0.1:{}"
exporter.otlp.endpoint = "http://127.0.0.1:{sink}"
"""


def processors() -> list[tuple[Path, str]]:
    """Each file and processor."""
    files = sorted((HERE / "configs").glob("*.yaml"))
    pattern = re.compile(r"^  (tail_sampling/[\w-]+):$", re.MULTILINE)
    found = [(file, name) for file in files for name in pattern.findall(file.read_text())]
    names = [name for _, name in found]
    if len(set(names)) < len(names):
        raise TroubleError(f"a processor is there twice: {sorted(names)}")
    return found


def maybe(rng: random.Random, key: str, values: list) -> list:
    return [(key, rng.choice(values))] if rng.random() < 0.6 else []


def traces(place: int) -> bytes:
    """Traces for one processor, all in one request."""
    rng = random.Random(place)
    request = service.ExportTraceServiceRequest()
    for number in range(TRACES):
        trace_id = bytes([place + 1]) + number.to_bytes(7, "big") + rng.randbytes(8)
        for span in range(rng.choice([1, 1, 2, 2, 3, 4])):
            resource = request.resource_spans.add()
            pairs = maybe(rng, "env", ["prod", "test"]) + maybe(rng, "shard", [3, 4])
            resource.resource.attributes.extend(attributes(pairs))
            add_span(rng, resource.scope_spans.add().spans, trace_id, span)
    return request.SerializeToString()


def add_span(rng: random.Random, spans, trace_id: bytes, number: int) -> None:
    made = spans.add(
        trace_id=trace_id,
        span_id=(number + 1).to_bytes(8, "big"),
        parent_span_id=b"" if number == 0 and rng.random() < 0.7 else b"parentid",
        name=rng.choice(["GET /", "GET /x", "pay", "poll"]),
        kind=rng.randint(0, 5),
        start_time_unix_nano=START,
        end_time_unix_nano=START + rng.choice([0, 1, 9, 10, 11, 50, 51, 99, 100, 101]) * MS,
        status={"code": rng.choice([0, 0, 0, 1, 2])},
        trace_state=rng.choice(["", "", "vendor=a", "vendor=b", "x=1,vendor=a"]),
        flags=rng.choice([0, 0, 0, 1]),
    )
    pairs = maybe(rng, "http.route", ["", *ROUTES])
    pairs += maybe(rng, "http.status_code", [200, 399, 400, 404, 405, 500, 501, 599, 600])
    pairs += maybe(rng, "cached", [True, False])
    made.attributes.extend(attributes(pairs))
    for _ in range(rng.choice([0, 0, 1, 2])):
        event = made.events.add(name=rng.choice(["exception", "retry", "other"]))
        pairs = maybe(rng, "type", ["Timeout", "timeout", "Reset"])
        pairs += [("level", "warn")] if rng.random() < 0.1 else []
        event.attributes.extend(attributes(pairs))


def start_with(
    children: Children, binary: Path, found: list, sink: Sink
) -> tuple[subprocess.Popen, list[int]]:
    """A Collector with the processors as their files have them, and a port for each."""
    ports = free_ports(len(found))
    made = collector.config([([], port) for port in ports], sink.port)
    # Later files count: everything is decided when the Collector is told to stop.
    made["processors"] = {name: {"decision_wait": "60s"} for _, name in found}
    for place, (_, name) in enumerate(found):
        made["service"]["pipelines"][f"traces/{place}"]["processors"] = [name]
    config = children.folder / "collector.yaml"
    config.write_text(json.dumps(made, indent=1))
    files = [*sorted({file for file, _ in found}), config]
    arguments = [part for file in files for part in ("--config", file)]
    return start_collector(children, binary, arguments, ports), ports


def by_collector(binary: Path, found: list, bodies: list, sink: Sink, folder: Path) -> None:
    with Children(folder) as children:
        process, ports = start_with(children, binary, found, sink)
        send_all(ports, bodies)
        process.send_signal(signal.SIGTERM)
        stop(process, "collector", children)


def by_tailwater(
    binary: Path, found: list, bodies: list, sink: Sink, folder: Path, traces: int = TRACES
) -> None:
    with Children(folder) as children:
        running = []
        # All at once: a port of a process that does not listen yet is still free.
        free = iter(free_ports(3 * len(found)))
        for place, (file, name) in enumerate(found):
            ports = [next(free) for _ in range(3)]
            config = folder / f"{place}.toml"
            command = [binary, "convert", "--processor", name, file]
            converted = subprocess.run(command, capture_output=True, text=True, check=False)
            if converted.returncode != 0:
                raise TroubleError(f"{name} is not converted\n{converted.stderr}")
            settings = SETTINGS.format(*ports, sink=sink.port)
            limited = "[sampling]\nmemory_limit_mib = 64\n"
            config.write_text(settings + converted.stdout.replace("[sampling]\n", limited))
            child = f"tailwater-{place}"
            process = children.start(child, binary, "run", "--config", config)
            running.append((child, process, ports))

        def ready() -> bool:
            for child, process, _ in running:
                if process.poll() is not None:
                    raise TroubleError(f"{child} ended\n{children.tail(child, 40)}")
            return all(get(f"http://127.0.0.1:{p[2]}/-/ready")[0] == 200 for _, _, p in running)

        wait_until("Tailwater is ready", ready, 60)
        send_all([ports[1] for _, _, ports in running], bodies)

        def all_decided() -> bool:
            return all(decided(p[2]) == traces for _, _, p in running)

        wait_until("all is decided", all_decided, 120)
        for _, process, _ in running:
            process.send_signal(signal.SIGTERM)
        for child, process, _ in running:
            stop(process, child, children)


def decided(port: int) -> int:
    text = get(f"http://127.0.0.1:{port}/metrics")[1].decode()
    decisions = re.findall(r"^tailwater_decisions_total\{[^}]*} (\d+)", text, re.MULTILINE)
    return sum(map(int, decisions))


def run(arguments: argparse.Namespace) -> int:
    shutil.rmtree(arguments.folder, ignore_errors=True)
    arguments.folder.mkdir(parents=True)
    found = processors()
    bodies = [[traces(place)] for place in range(len(found))]
    theirs, ours = Sink(), Sink()
    try:
        by_collector(arguments.collector, found, bodies, theirs, arguments.folder)
        by_tailwater(arguments.tailwater, found, bodies, ours, arguments.folder)
        kept = spans_by_trace(theirs), spans_by_trace(ours)
    finally:
        theirs.stop()
        ours.stop()
    failed = 0
    for place, (_, name) in enumerate(found):
        here, there = ({t: n for t, n in one.items() if t[0] == place + 1} for one in kept)
        alike = here == there
        # A processor that keeps all or nothing would show nothing (but `always` must keep all).
        is_telling = 0 < len(here) < TRACES or name.endswith("/always")
        failed += not (alike and is_telling)
        word = "ok  " if alike and is_telling else "FAIL"
        differing = {t for t in here.keys() | there.keys() if here.get(t) != there.get(t)}
        print(f"{word}  {name}: {len(here)} of {TRACES} kept, {len(differing)} differ")
    print(f"{len(found) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(exit_code(run, arguments_of(__doc__)))
