"""Instances behind the Collector's `load_balancing` exporter that come and go: 2, then 3, then 2.

Two Collectors send the spans of each trace in turn, and learn of a change one after the other, as
they do when they resolve a name. The test counts the traces that are split between instances, and
checks what still holds for them: every span reaches one instance, percentages decide all parts
alike, and the part with an error is kept. It prints what does not hold: the other parts of a trace
with an error.
"""

import argparse
import collections
import http.client
import json
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "real"))

from children import Children, TroubleError, free_ports, get, wait_until  # noqa: E402
from compare import arguments_of, exit_code, post, start_collector, stop  # noqa: E402
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service  # noqa: E402
from opentelemetry.proto.trace.v1.trace_pb2 import Status  # noqa: E402
from quarter import POLICIES, is_chosen  # noqa: E402
from sink import Sink  # noqa: E402

CONFIG = """\
receiver.grpc.endpoint = "127.0.0.1:{grpc}"
receiver.http.endpoint = "127.0.0.1:{http}"
telemetry.endpoint = "127.0.0.1:{telemetry}"
exporter.otlp.endpoint = "http://127.0.0.1:{backend}"
sampling.decision_wait = "4s"
sampling.decision_wait_after_root_received = "1s"
sampling.memory_limit_mib = 64
"""
WAIT_S = 4
TRACES_PER_S = 100
SPANS = 4
# The spans of a trace are sent this far apart, the root last.
APART_S = 0.5
TICK_S = 0.05
# The second Collector learns of a change this long after the first.
BETWEEN_S = 1
# Spans are sent in ticks, and a Collector is reloaded in a moment.
SLACK_S = 1
# The changes, and the end of the traffic.
GROW_S, SHRINK_S, END_S = 6, 13, 20


@dataclass
class Trace:
    id: bytes
    # Seconds after the beginning at which its first span is sent.
    begun: float
    failing: int | None
    # The decisions that each instance reports: spans, and the trigger.
    parts: dict[int, tuple[int, str]] = field(default_factory=dict)


def traffic(rng: random.Random) -> list[Trace]:
    count = int((END_S - SPANS * APART_S) * TRACES_PER_S)
    return [
        Trace(
            rng.randbytes(16),
            number / TRACES_PER_S,
            rng.randrange(SPANS) if rng.random() < 0.25 else None,
        )
        for number in range(count)
    ]


def request(spans: list[tuple[Trace, int]]) -> bytes:
    made = service.ExportTraceServiceRequest()
    scope = made.resource_spans.add().scope_spans.add()
    now = time.time_ns()
    for trace, number in spans:
        fails = trace.failing == number
        scope.spans.add(
            trace_id=trace.id,
            span_id=(number + 1).to_bytes(8, "big"),
            parent_span_id=b"" if number == SPANS - 1 else SPANS.to_bytes(8, "big"),
            name="span",
            start_time_unix_nano=now,
            end_time_unix_nano=now + 1,
            status=Status(code=Status.STATUS_CODE_ERROR if fails else Status.STATUS_CODE_OK),
        )
    return made.SerializeToString()


class Sender(threading.Thread):
    """Sends a share of the spans to a Collector when they are due; never gives up one."""

    def __init__(self, port: int, due: list[tuple[float, Trace, int]], began: float) -> None:
        super().__init__(daemon=True)
        self.port, self.began = port, began
        self.due = collections.deque(sorted(due, key=lambda one: one[0]))

    def run(self) -> None:
        while self.due:
            now, batch = time.monotonic() - self.began, []
            while self.due and self.due[0][0] <= now:
                batch.append(self.due.popleft()[1:])
            if batch:
                self.send(request(batch))
            time.sleep(TICK_S)

    def send(self, body: bytes) -> None:
        give_up = time.monotonic() + 30
        while True:
            try:
                post(self.port, [body])
                return
            except (OSError, http.client.HTTPException, TroubleError):
                # The Collector is being reloaded: a sender sends again.
                if time.monotonic() > give_up:
                    raise
                time.sleep(TICK_S)


@dataclass
class Instance:
    """A Tailwater with a backend of its own, so that the test knows who kept a span."""

    number: int
    ports: dict[str, int]
    sink: Sink
    process: subprocess.Popen


class Fleet:
    def __init__(self, told: argparse.Namespace, children: Children) -> None:
        self.told, self.children = told, children
        self.instances: list[Instance] = []
        self.collectors: list[tuple[Path, int, subprocess.Popen]] = []

    def add_instance(self) -> None:
        number = len(self.instances)
        ports = dict(zip(("grpc", "http", "telemetry"), free_ports(3), strict=True))
        sink = Sink()
        config = self.told.folder / f"{number}.toml"
        config.write_text(CONFIG.format(backend=sink.port, **ports) + POLICIES)
        name = f"tailwater-{number}"
        process = self.children.start(name, self.told.tailwater, "run", "--config", config)
        ready = f"http://127.0.0.1:{ports['telemetry']}/-/ready"
        wait_until("Tailwater is ready", lambda: get(ready)[0] == 200, 60)
        self.instances.append(Instance(number, ports, sink, process))

    def add_collector(self) -> int:
        (port,) = free_ports(1)
        config = self.told.folder / f"collector-{len(self.collectors)}.yaml"
        self.write(config, port, 2)
        # Both write to one log, which the second begins anew.
        process = start_collector(
            self.children, self.told.collector, ["--config", config], [port]
        )
        self.collectors.append((config, port, process))
        return port

    def write(self, config: Path, port: int, count: int) -> None:
        names = [f"127.0.0.1:{one.ports['grpc']}" for one in self.instances[:count]]
        exporter = {
            "routing_key": "traceID",
            "protocol": {"otlp": {"tls": {"insecure": True}, "compression": "none"}},
            "resolver": {"static": {"hostnames": names}},
        }
        pipeline = {"receivers": ["otlp"], "exporters": ["load_balancing"]}
        made = {
            "receivers": {"otlp": {"protocols": {"http": {"endpoint": f"127.0.0.1:{port}"}}}},
            "exporters": {"load_balancing": exporter},
            "service": {
                "telemetry": {"metrics": {"level": "none"}},
                "pipelines": {"traces": pipeline},
            },
        }
        # JSON is YAML.
        config.write_text(json.dumps(made, indent=1))

    def resize(self, count: int) -> None:
        for place, (config, port, process) in enumerate(self.collectors):
            if place > 0:
                time.sleep(BETWEEN_S)
            self.write(config, port, count)
            process.send_signal(signal.SIGHUP)

    def look_up(self, instance: Instance, traces: list[Trace]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", instance.ports["telemetry"], timeout=5)
        for trace in traces:
            connection.request("GET", f"/-/decisions/{trace.id.hex()}")
            answer = connection.getresponse()
            body = answer.read()
            if answer.status == 200:
                told = json.loads(body)
                if told["decision"] == "pending":
                    raise TroubleError(f"{trace.id.hex()} is not decided: {told}")
                trace.parts[instance.number] = (told["spans"], told["trigger"])
            elif answer.status != 404:
                raise TroubleError(f"a look-up answers {answer.status}: {body!r}")
        connection.close()

    def stop(self, instance: Instance) -> None:
        instance.process.send_signal(signal.SIGTERM)
        stop(instance.process, f"tailwater-{instance.number}", self.children)

    def run(self, traces: list[Trace]) -> None:
        self.add_instance()
        self.add_instance()
        ports = [self.add_collector() for _ in range(2)]
        due: list[list[tuple[float, Trace, int]]] = [[], []]
        for place, trace in enumerate(traces):
            for number in range(SPANS):
                at = trace.begun + number * APART_S
                due[(place + number) % 2].append((at, trace, number))
        began = time.monotonic()
        senders = [Sender(port, one, began) for port, one in zip(ports, due, strict=True)]
        for sender in senders:
            sender.start()
        self.add_instance()
        sleep_until(began + GROW_S)
        self.resize(3)
        sleep_until(began + SHRINK_S)
        self.resize(2)
        # It is left out by all Collectors, so it gets the time to decide its traces.
        time.sleep(WAIT_S + 1)
        self.look_up(self.instances[2], traces)
        self.stop(self.instances[2])
        for sender in senders:
            sender.join(60)
            if sender.is_alive():
                raise TroubleError("a Collector does not take the spans")
        time.sleep(WAIT_S + 1)
        for instance in self.instances[:2]:
            self.look_up(instance, traces)
            self.stop(instance)


def sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


def trace_id_of(span: dict) -> bytes:
    return bytes.fromhex(span["trace_id"])


class Result:
    """The outcome of the traces."""

    def __init__(self, traces: list[Trace], spans: list[list[dict]]) -> None:
        self.traces, self.spans = traces, spans
        self.kept = [collections.Counter(map(trace_id_of, of_one)) for of_one in spans]
        self.problems: list[str] = []
        self.split = [trace for trace in traces if len(trace.parts) > 1]

    def check(self, trace: Trace) -> None:
        """Every span once, a chosen trace whole, and the part with an error."""
        spans = sum(count for count, _ in trace.parts.values())
        by_instance = [kept[trace.id] for kept in self.kept]
        kept = sum(by_instance)
        if trace.failing is None:
            wanted = {SPANS if is_chosen(trace.id) else 0}
        elif is_chosen(trace.id):
            wanted = {SPANS}
        else:
            # The part with the error, as large as it is.
            wanted = {count for count, _ in trace.parts.values()}
        if spans != SPANS or kept not in wanted:
            told = f"{trace.id.hex()}, begun at {trace.begun:.1f} s: {trace}"
            self.problems.append(f"{told}: kept {by_instance}, not one of {wanted}")

    def weigh(self) -> None:
        """Each part has the threshold of its own decision, so weighted counts stay right."""
        estimate = 0
        for of_one in self.spans:
            failing = {trace_id_of(span) for span in of_one if span["status"]["code"] == "ERROR"}
            for span in of_one:
                wanted = "ot=th:0" if trace_id_of(span) in failing else "ot=th:c"
                if span["tracestate"] != wanted:
                    self.problems.append(f"{span['trace_id']}: {span['tracestate']}, not {wanted}")
                estimate += 1 if wanted == "ot=th:0" else 4
        sent = SPANS * len(self.traces)
        print(f"{sent} spans sent; estimated from those that were kept: {estimate}")

    def kinds(self) -> None:
        fine = [t for t in self.split if t.failing is None]
        chosen = [t for t in fine if is_chosen(t.id)]
        failing = [t for t in self.split if t.failing is not None]
        kept = {t.id: sum(kept[t.id] for kept in self.kept) for t in failing}
        cut = [SPANS - spans for spans in kept.values() if spans < SPANS]
        rate = len(self.split) / len(self.traces)
        print(f"{len(self.traces)} traces of {SPANS} spans, {len(self.split)} ({rate:.1%}) split:")
        print(f"  {len(chosen)} without error, chosen by the percentage: whole")
        print(f"  {len(fine) - len(chosen)} without error, not chosen: dropped by all instances")
        print(f"  {len(failing) - len(cut)} with an error, chosen as well: whole")
        print(f"  {len(cut)} with an error, not chosen: {sum(cut)} spans beside it are missing")
        waits = [
            t for t in self.split if any(why == "decision_wait" for _, why in t.parts.values())
        ]
        print(f"{len(waits)} split traces have a part without root, decided by decision_wait")

    def summary(self) -> int:
        for trace in self.traces:
            self.check(trace)
        first, last = -(SPANS - 1) * APART_S - SLACK_S, BETWEEN_S + SLACK_S
        near: list[Trace] = []
        for name, change in {"2 to 3": GROW_S, "3 to 2": SHRINK_S}.items():
            own = [t for t in self.split if first <= t.begun - change <= last]
            near += own
            print(f"{name} instances: {len(own)} traces split")
            if not own:
                self.problems.append(f"no trace is split by the change from {name}")
        if len(near) < len(self.split):
            self.problems.append("traces are split that no change met while they were sent")
        self.kinds()
        self.weigh()
        for problem in self.problems[:5]:
            print(f"FAIL  {problem}")
        print(f"{len(self.traces)} traces checked, {len(self.problems)} problems")
        return 1 if self.problems else 0


def run(told: argparse.Namespace) -> int:
    shutil.rmtree(told.folder, ignore_errors=True)
    told.folder.mkdir(parents=True)
    traces = traffic(random.Random(told.seed))
    with Children(told.folder) as children:
        fleet = Fleet(told, children)
        try:
            fleet.run(traces)
            kept = [instance.sink.spans() for instance in fleet.instances]
        finally:
            for instance in fleet.instances:
                instance.sink.stop()
    return Result(traces, kept).summary()


def main() -> int:
    parser = arguments_of(__doc__)
    parser.add_argument("--seed", type=int, default=1)
    return exit_code(run, parser)


if __name__ == "__main__":
    sys.exit(main())
