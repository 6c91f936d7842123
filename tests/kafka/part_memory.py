"""Little memory: partitions wait instead of traces being decided early.

And catching up by the time of records.
"""

import random
import time

from quarter import is_chosen
from run import Run
from traffic import Trace, make_trace, request

PARTITIONS, WAIT_S = 4, 5
MEMORY_MIB = 64
# Records of WAIT_S take 12 MiB of each partition. A part of the limit goes to other things, so two or
# three partitions fit, and four do not.
PAYLOAD, PER_SECOND, SECONDS = 8_000, 150, 25


def backlog(run: Run, rng: random.Random, topic: str, payload: int, rate: int) -> list[Trace]:
    """Records whose time was minutes ago; the second half of a trace 3 s after the first."""
    began = int(time.time() * 1000) - 600_000
    written, traces = run.topic(topic, "lz4"), []
    for partition in range(PARTITIONS):
        records = []
        for number in range(rate * SECONDS):
            trace = make_trace(rng, 2, payload)
            at = began + number * 1000 // rate
            records += [(at, trace, 0), (at + 3000, trace, 1)]
            traces.append(trace)
        for at, trace, part in sorted(records, key=lambda one: one[0]):
            value = request_of(trace, part)
            written.put(value, trace.id.hex().encode(), partition=partition, timestamp=at)
        written.flush()
    return traces


def request_of(trace: Trace, part: int) -> bytes:
    return request([trace.spans[part]]).SerializeToString()


def part(run: Run) -> None:
    rng = random.Random(run.told.seed)
    run.broker.create("memory", PARTITIONS)
    traces = backlog(run, rng, "memory", PAYLOAD, PER_SECOND)
    one = run.instance("memory", "memory", wait_s=WAIT_S, memory_mib=MEMORY_MIB).start()
    run.wait_for_commits("memory", "memory", 180)
    run.settle("memory", [one], f"a backlog and {MEMORY_MIB} MiB", traces)
    triggers = one.metrics().by("decisions_total", "trigger")
    early = {why: count for why, count in triggers.items() if why in ("memory", "shutdown")}
    run.check("partitions waited, and no trace was decided early", [f"{early}"] if early else [])
    one.stop()

    # One partition alone exceeds the limit: it goes on, and decides early.
    run.broker.create("memory-large", 1)
    written = run.topic("memory-large", "lz4")
    large = [make_trace(rng, 1, 60_000) for _ in range(2_000)]
    now = int(time.time() * 1000) - 600_000
    for trace in large:
        written.put_trace(trace, timestamp=now)
    written.flush()
    one = run.instance("memory-large", "memory-large", wait_s=WAIT_S, memory_mib=MEMORY_MIB).start()
    run.settle("memory-large", [one], "a partition that alone exceeds the limit", large)
    early = one.metrics().total("decisions_total", trigger="memory")
    run.check("then traces are decided early", [] if early else ["none was"])
    one.stop()

    catching_up(run, rng)


def catching_up(run: Run, rng: random.Random) -> None:
    """An error after the decision is a late span, however quickly both are read."""
    run.broker.create("memory-times", 1)
    written, now = run.topic("memory-times"), int(time.time() * 1000) - 600_000
    traces = []
    for number in range(200):
        trace = make_trace(rng, 2)
        while is_chosen(trace.id) or not trace.failing or trace.spans[1].status.code != 2:
            trace = make_trace(rng, 2)
        apart = WAIT_S - 1 if number % 2 else WAIT_S + 2
        trace.expected = 2 if number % 2 else 0
        traces.append((now + number * 10, trace, apart))
    records = [(at, trace, 0) for at, trace, _ in traces]
    records += [(at + apart * 1000, trace, 1) for at, trace, apart in traces]
    for at, trace, part in sorted(records, key=lambda one: one[0]):
        written.put(request_of(trace, part), trace.id.hex().encode(), partition=0, timestamp=at)
    written.flush()
    one = run.instance("memory-times", "memory-times", wait_s=WAIT_S).start()
    run.settle(
        "memory-times", [one], "catching up by the time of records", [t for _, t, _ in traces]
    )
    late = one.metrics().total("late_error_spans_total")
    run.check("late errors are counted", [] if late else ["none"])
    one.stop()
