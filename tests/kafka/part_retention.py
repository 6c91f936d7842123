"""Offsets that a group has committed and retention has removed; a group that begins at the end."""

import random
import time

from children import wait_until
from compare import compare
from instance import at_rest, ledger, partitions
from run import Run
from traffic import Trace, make_trace


def part(run: Run) -> None:
    rng, topic = random.Random(run.told.seed), "retention"
    run.broker.create(topic, 2)
    written = run.topic(topic)

    def write(count: int) -> list[Trace]:
        traces = [make_trace(rng, 2) for _ in range(count)]
        for number, trace in enumerate(traces):
            written.put_trace(trace, partition=number % 2)
        written.flush()
        return traces

    # A short margin, so that nothing is read that was committed long ago.
    one = run.instance(topic, topic, kafka={"replay_margin": "0s"}).start()
    before = write(40)
    run.settle(topic, [one], "before retention", before)
    one.stop()
    gone = write(60)
    after = write(80)
    ends = run.broker.ends(topic)
    run.broker.remove_before(topic, {p: end - 40 for p, end in ends.items()})
    one.start()
    run.settle(topic, [one], "after retention", before + after)
    lost = one.metrics().total("kafka_lost_records_total")
    wrong = [] if lost == len(gone) else [f"{lost:.0f}, not {len(gone)}"]
    run.check("records that retention removed are counted", wrong)
    told = [] if "retention" in one.log() or "lost" in one.log() else [one.log()[-2000:]]
    run.check("the log tells of them", told)
    one.stop()

    while_it_runs(run, rng)
    at_the_end(run, topic, rng)


def while_it_runs(run: Run, rng: random.Random) -> None:
    """The backend is away for so long that retention removes what waits to be read."""
    name, payload = "retention-runs", 12_000
    run.broker.create(name, 2)
    written = run.topic(name)
    one = run.instance(name, name, wait_s=1, memory_mib=64, kafka={"replay_margin": "2s"}).start()
    wait_until("it has its partitions", lambda: partitions([one]) == 2, 30)
    one.sink.stop()

    def write(count: int, when: int | None = None) -> list[Trace]:
        traces = [make_trace(rng, 2, payload) for _ in range(count)]
        for number, trace in enumerate(traces):
            where = {} if when is None else {"timestamp": when + number}
            written.put_trace(trace, partition=number % 2, **where)
        written.flush()
        return traces

    def read() -> float:
        return one.metrics().total("kafka_records_total")

    # Records of minutes, so that traces are decided at once, and fill the queue.
    first = write(6_000, int(time.time() * 1000) - 600_000)
    seen = [-1.0] * 20

    def waits() -> bool:
        seen.append(read())
        time.sleep(0.1)
        return 0 < seen[-1] == seen[-20] and seen[-1] < len(first)

    wait_until("reading waits for the backend", waits, 60)
    ends = run.broker.ends(name)
    run.broker.remove_before(name, ends)
    after = write(60)
    one.sink.come_back()
    run.wait_for_commits(name, name)
    at_rest([one])
    lost = one.metrics().total("kafka_lost_records_total")
    run.say(f"{read():.0f} records read, {lost:.0f} lost of {len(first) + len(after)}")
    # One record may be in its hands when retention removes it.
    whole = len(first) + len(after)
    wrong = [] if lost > 0 and whole <= read() + lost <= whole + 2 else [f"{lost:.0f} lost"]
    run.check("what retention removes from a running instance is counted", wrong)
    result = compare(after, [one.sink])
    faults = [fault for fault in result.problems if "nobody sent" not in fault]
    run.check("it reads on where records begin", faults + ledger(one))
    one.stop()


def at_the_end(run: Run, topic: str, rng: random.Random) -> None:
    late = run.instance(
        "retention-latest", topic, "late", kafka={"initial_offset": "latest"}
    ).start()
    wait_until("it has its partitions", lambda: partitions([late]) == 2, 30)
    written = run.topic(topic)

    def is_read(partition: int, accepted: float) -> bool:
        """Whether a trace, which no policy keeps, has been read from this partition."""
        trace = make_trace(rng, 1)
        while trace.expected:
            trace = make_trace(rng, 1)
        written.put_trace(trace, partition=partition)
        written.flush()
        time.sleep(0.2)
        return late.metrics().total("receiver_accepted_spans_total") > accepted

    # It looks up where a partition ends some time after it has got it.
    for partition in range(2):
        before = late.metrics().total("receiver_accepted_spans_total")
        what = f"partition {partition} is read"
        wait_until(what, lambda p=partition, b=before: is_read(p, b), 30)
    newest = [make_trace(rng, 2) for _ in range(40)]
    for number, trace in enumerate(newest):
        written.put_trace(trace, partition=number % 2)
    written.flush()
    run.wait_for_commits(topic, "late")
    at_rest([late])
    result = compare(newest, [late.sink])
    run.check(
        "a group that begins at the end has what came later, and nothing else", result.problems
    )
    late.stop()
