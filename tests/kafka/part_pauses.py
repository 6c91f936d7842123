"""Partitions that are paused while they move to another instance, and back."""

import random
import time

from children import wait_until
from instance import Instance, at_rest, partitions
from run import Run
from traffic import make_trace, request

TOPIC, PARTITIONS = "pauses", 4
# The queue of the exporter is a quarter of the memory limit: 16 MiB, which these traces exceed.
PAYLOAD, TRACES, MEMORY_MIB = 12_000, 6_000, 64


def stands_still(one: Instance) -> None:
    """Waits until it reads no more: the queue is full, and its partitions are paused."""
    seen = [-1.0] * 20

    def stands() -> bool:
        seen.append(one.metrics().total("kafka_records_total"))
        time.sleep(0.1)
        return 0 < seen[-1] == seen[-20]

    wait_until("reading waits for the backend", stands, 60)


def part(run: Run) -> None:
    rng = random.Random(run.told.seed)
    run.broker.create(TOPIC, PARTITIONS)
    written, past = run.topic(TOPIC, "lz4"), int(time.time() * 1000) - 600_000
    traces = [make_trace(rng, 1, PAYLOAD) for _ in range(TRACES)]
    for number, trace in enumerate(traces):
        value = request(trace.spans).SerializeToString()
        where = {"partition": number % PARTITIONS, "timestamp": past + number}
        written.put(value, trace.id.hex().encode(), **where)
    written.flush()
    told = {"wait_s": 1, "memory_mib": MEMORY_MIB}
    kafka = {"leave_on_shutdown": True, "session_timeout": "6s"}
    stays = run.instance("pauses-stays", TOPIC, kafka=kafka, **told)
    guest = run.instance("pauses-guest", TOPIC, kafka=kafka, **told)
    for one in (stays, guest):
        one.sink.stop()
    stays.start()
    wait_until("it has all partitions", lambda: partitions([stays]) == PARTITIONS, 30)
    stands_still(stays)
    guest.start()
    wait_until("the guest has some", lambda: partitions([guest]) == PARTITIONS // 2, 30)
    stands_still(guest)
    # Its backend is away: it would end with an error.
    guest.kill()
    wait_until("they are back", lambda: partitions([stays]) == PARTITIONS, 30)
    stays.sink.come_back()
    run.settle(TOPIC, [stays, guest], "paused partitions that moved and came back", traces)
    at_rest([stays])
    stays.stop()
