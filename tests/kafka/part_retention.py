"""Offsets that a group has committed and retention has removed; a group that begins at the end."""

import random
import time

from children import wait_until
from compare import compare
from instance import at_rest, partitions
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

    at_the_end(run, topic, rng)


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
