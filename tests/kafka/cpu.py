"""CPU per span of reading a topic, beside taking the same requests over gRPC at the same rate.

Two instances, one for each way. Pairs of phases take turns, so that what else the machine does
meets both. `process_cpu_seconds_total` covers a phase up to the moment at which everything is
decided; what an instance takes while nothing comes is subtracted.
"""

import argparse
import random
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "real"))

import grpc  # noqa: E402
from broker import Broker  # noqa: E402
from children import Children, get, wait_until  # noqa: E402
from instance import Instance, partitions  # noqa: E402
from traffic import Topic, make_trace, request  # noqa: E402

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
SPANS, PAYLOAD, WAIT_S, PARTITIONS = 8, 500, 1, 4
IDLE_S = 5
POLICIES = '\n[[policy]]\nname = "few"\ntype = "probabilistic"\nsampling_percentage = 1\n'


class Bodies:
    """Requests that differ in nothing but their trace ids."""

    def __init__(self, traces: int) -> None:
        rng = random.Random(1)
        made = [make_trace(rng, SPANS, PAYLOAD) for _ in range(traces)]
        whole = request([span for trace in made for span in trace.spans])
        self.template = whole.SerializeToString()
        self.places = [list(places(self.template, trace.id)) for trace in made]
        self.spans = traces * SPANS

    def make(self) -> tuple[bytes, bytes]:
        """A key and a request."""
        body, trace_id = bytearray(self.template), b""
        for found in self.places:
            trace_id = secrets.token_bytes(16)
            for place in found:
                body[place : place + 16] = trace_id
        return trace_id.hex().encode(), bytes(body)


def places(body: bytes, trace_id: bytes):
    at = body.find(trace_id)
    while at >= 0:
        yield at
        at = body.find(trace_id, at + 16)


def cpu_seconds(one: Instance) -> float:
    _, scrape = get(f"http://127.0.0.1:{one.telemetry}/metrics")
    lines = scrape.decode().splitlines()
    return float(
        next(line for line in lines if line.startswith("process_cpu_seconds_total")).split()[1]
    )


def phase(
    one: Instance, send: Callable[[bytes, bytes], None], bodies: Bodies, told
) -> tuple[float, float]:
    """CPU seconds and seconds of a phase."""
    count = round(told.rate * told.seconds / bodies.spans)
    made = [bodies.make() for _ in range(count)]
    accepted = "receiver_accepted_spans_total"
    wanted = one.metrics().total(accepted) + count * bodies.spans
    before, began = cpu_seconds(one), time.monotonic()
    for number, (key, body) in enumerate(made):
        early = began + number / count * told.seconds - time.monotonic()
        if early > 0:
            time.sleep(early)
        send(key, body)
    behind = time.monotonic() - began - told.seconds
    if behind > 0.1 * told.seconds:
        print(f"the sender was {behind:.1f} s behind", file=sys.stderr)

    def is_done() -> bool:
        m = one.metrics()
        return m.total(accepted) >= wanted and not m.total("window_spans")

    wait_until("everything is decided", is_done, 120)
    return cpu_seconds(one) - before, time.monotonic() - began


def idle(one: Instance) -> float:
    before = cpu_seconds(one)
    time.sleep(IDLE_S)
    return (cpu_seconds(one) - before) / IDLE_S


def compare(told, broker: Broker, children: Children, traces: int) -> None:
    bodies, name = Bodies(traces), f"cpu-{traces}"
    broker.create(name, PARTITIONS)
    kafka = {"brokers": [broker.address], "topic": name, "group_id": name}
    common = {"wait_s": WAIT_S, "memory_mib": 1024, "policies": POLICIES}
    by_kafka = Instance(told.tailwater, children, f"{name}-kafka", kafka, **common).start()
    by_grpc = Instance(told.tailwater, children, f"{name}-grpc", None, **common).start()
    wait_until("partitions", lambda: partitions([by_kafka]) == PARTITIONS, 30)
    topic = Topic(broker.address, name, told.codec)
    call = grpc.insecure_channel(f"127.0.0.1:{by_grpc.grpc_port}").unary_unary(EXPORT)
    waiting: list[grpc.Future] = []

    def to_grpc(_: bytes, body: bytes) -> None:
        waiting.append(call.future(body))
        if len(waiting) >= 8:
            waiting.pop(0).result(30)

    ways = {
        "kafka": (by_kafka, lambda key, body: topic.put(body, key)),
        "grpc": (by_grpc, to_grpc),
    }
    at_rest = {way: idle(one) for way, (one, _) in ways.items()}
    ratios = []
    print(
        f"{traces} traces of {SPANS} spans a request, {len(bodies.template)} bytes, "
        f"{told.rate} spans/s,"
        f" batches {told.codec}; idle: " + ", ".join(f"{w} {c:.3f}" for w, c in at_rest.items())
    )
    for pair in range(told.pairs):
        per_span = {}
        for way in sorted(ways, reverse=pair % 2 == 0):
            cpu, seconds = phase(*ways[way], bodies, told)
            count = round(told.rate * told.seconds / bodies.spans) * bodies.spans
            per_span[way] = (cpu - at_rest[way] * seconds) / count
        ratios.append(per_span["kafka"] / per_span["grpc"])
        figures = ", ".join(f"{way} {1e6 * cpu:.2f} us" for way, cpu in sorted(per_span.items()))
        print(f"  pair {pair}: {figures} a span, ratio {ratios[-1]:.2f}", flush=True)
    print(f"  Kafka over gRPC: median {statistics.median(ratios):.2f}")
    by_kafka.stop()
    by_grpc.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("tailwater", "collector", "kafka"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--rate", type=int, default=40_000, help="spans a second")
    parser.add_argument("--seconds", type=float, default=5, help="of a phase")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--traces", default="1,20", help="traces of a request; several in turn")
    parser.add_argument("--codec", default="none", help="of the batches in the topic")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tailwater-kafka-") as folder:
        with Children(Path(folder)) as children:
            broker = Broker(told.kafka, children)
            for traces in map(int, told.traces.split(",")):
                compare(told, broker, children, traces)


if __name__ == "__main__":
    main()
