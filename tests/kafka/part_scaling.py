"""3 -> 4 -> 2 instances under load, with a kill -9 among them: no trace split, no span lost."""

import itertools
import random

from children import wait_until
from collectors import Collector
from compare import expect_by_log
from instance import Instance, partitions
from run import Run
from traffic import Load

TOPIC, PARTITIONS = "scaling", 12
WAIT_S = 3
# While all instances are there, and after each change.
STEP_S = 6


def sleep_under(load: Load, seconds: float) -> None:
    """Waits, unless the load has trouble."""
    load.join(seconds)
    if load.trouble:
        raise load.trouble


def rounds(run: Run, load: Load, instances: list[Instance], rng: random.Random) -> None:
    def add() -> Instance:
        name = f"scaling-{len(instances)}"
        one = run.instance(
            name,
            TOPIC,
            wait_s=WAIT_S,
            kafka={"session_timeout": "4s", "leave_on_shutdown": rng.random() < 0.5},
        )
        instances.append(one.start())
        return one

    def running() -> list[Instance]:
        return [one for one in instances if one.is_running()]

    for _ in range(3):
        add()
    for number in range(run.told.rounds):
        run.say(f"round {number}")
        while len(running()) < 3:
            add()
        sleep_under(load, STEP_S + rng.random())
        add()
        sleep_under(load, STEP_S + rng.random())
        # It comes back under its name before or after its partitions have moved.
        killed = rng.choice(running())
        killed.kill()
        sleep_under(load, rng.choice([0.5, 6]) + rng.random())
        killed.start()
        sleep_under(load, STEP_S + rng.random())
        # One is told to go, and one goes without a word.
        rng.choice(running()).stop()
        sleep_under(load, STEP_S * rng.random())
        rng.choice(running()).kill()
        sleep_under(load, 2 * STEP_S + rng.random())
    # All partitions are with those that are left.
    wait_until("every partition has an owner", lambda: partitions(running()) == PARTITIONS, 30)


def part(run: Run) -> None:
    # With the broker's times, it is known which errors come in time, however busy the machine is.
    run.broker.create(TOPIC, PARTITIONS, message_timestamp_type="LogAppendTime")
    address = run.broker.address
    collectors = [
        Collector(run.told.collector, run.children, address, TOPIC, f"scaling-collector-{n}")
        for n in range(2)
    ]
    # The spans of a trace take turns.
    turns = itertools.cycle(collectors)
    load = Load(lambda spans: next(turns).send(spans), run.told.rate, run.told.seed)
    instances: list[Instance] = []
    load.start()
    try:
        rounds(run, load, instances, random.Random(run.told.seed))
    finally:
        load.ending.set()
    traces = load.finish()
    for collector in collectors:
        collector.stop()
    run.wait_for_commits(TOPIC, TOPIC, 90)
    records = ((one.timestamp()[1], one.value()) for one in run.broker.records(TOPIC))
    run.say(expect_by_log(traces, records, WAIT_S))
    run.settle(TOPIC, instances, "3 -> 4 -> 2 instances", traces)
    running = [one for one in instances if one.is_running()]
    handed = sum(one.metrics().total("spans_handed_over_total") for one in running)
    moves = sum(one.metrics().total("kafka_rebalances_total") for one in running)
    run.say(f"of those that run: {handed:.0f} spans handed over, {moves:.0f} rebalances")
    early = [
        f"{one.name}: {count:.0f} {why}"
        for one in running
        for why, count in one.metrics().by("decisions_total", "trigger").items()
        if why in ("memory", "shutdown")
    ]
    run.check("3 -> 4 -> 2 instances: nothing was decided early", early)
    for one in running:
        one.stop()
