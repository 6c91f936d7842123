"""A topic that is missing, then created, then gets more partitions."""

import random

from children import wait_until
from instance import partitions
from run import Run
from traffic import make_trace

NOTICED_S = 40


def part(run: Run) -> None:
    rng = random.Random(run.told.seed)
    one = run.instance("topics", "topics").start(until_ready=False)
    wait_until("the log names the topic", lambda: "topics" in one.log(), 30)
    run.broker.create("topics", 2)
    wait_until("the new topic is read", lambda: partitions([one]) == 2, NOTICED_S)
    traces = [make_trace(rng, 3) for _ in range(100)]
    written = run.topic("topics")
    for trace in traces:
        written.put_trace(trace)
    written.flush()
    run.settle("topics", [one], "a topic that came later", traces)
    run.broker.grow("topics", 5)
    # They are in the new partitions before the instance knows of them.
    more = [make_trace(rng, 3) for _ in range(100)]
    written = run.topic("topics")
    for number, trace in enumerate(more):
        written.put_trace(trace, partition=2 + number % 3)
    written.flush()
    wait_until("new partitions are read", lambda: partitions([one]) == 5, NOTICED_S)
    run.settle("topics", [one], "partitions that came later", traces + more)
    one.stop()
