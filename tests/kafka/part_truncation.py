"""A broker that comes back without its last records, as after the loss of a disk's cache."""

import random
import signal
from pathlib import Path

from children import wait_until
from compare import compare
from instance import Instance, at_rest, ledger, partitions
from run import Run
from traffic import Topic, Trace, make_trace

WAIT_S = 2


def write(written: Topic, rng: random.Random, count: int) -> list[Trace]:
    traces = [make_trace(rng, 2) for _ in range(count)]
    for number, trace in enumerate(traces):
        written.put_trace(trace, partition=number % 2)
    written.flush()
    return traces


def cut(folder: Path, topic: str) -> None:
    """Takes away the last third of what each partition has on disk."""
    for partition in range(2):
        of = folder / "kafka-data" / f"{topic}-{partition}"
        (log,) = of.glob("*.log")
        with log.open("r+b") as file:
            file.truncate(log.stat().st_size * 2 // 3)
        # They point behind the end; the broker builds them again.
        for index in (*of.glob("*.index"), *of.glob("*.timeindex"), *of.glob("*.snapshot")):
            index.unlink()


def part(run: Run) -> None:
    is_noticed(run, "truncation", grows=False)
    is_noticed(run, "truncation-grown", grows=True)


def is_noticed(run: Run, topic: str, *, grows: bool) -> None:
    """While nothing follows, or while new records take the offsets of lost ones first."""
    rng = random.Random(run.told.seed)
    run.broker.create(topic, 2)
    # Longer than the broker is away: an owner that begins anew knows only the commit.
    kafka = {"session_timeout": "90s"}
    one = run.instance(topic, topic, wait_s=WAIT_S, kafka=kafka).start()
    wait_until("it has its partitions", lambda: partitions([one]) == 2, 30)
    # Written one by one, so that there are batches to cut.
    written = run.topic(topic, **{"linger.ms": 0, "batch.num.messages": 1})
    old = write(written, rng, 150)
    run.settle(topic, [one], f"{topic}: before", old)
    ends = run.broker.ends(topic)
    if grows:
        one.process.send_signal(signal.SIGSTOP)
    run.broker.stop(signal.SIGKILL)
    cut(run.broker.folder, topic)
    run.broker.start()
    lost = {p: ends[p] - end for p, end in run.broker.ends(topic).items()}
    run.say(f"{topic}: records of {ends} that the broker has lost: {lost}")
    run.check(f"{topic}: the broker has lost records", [] if min(lost.values()) > 0 else [f"{lost}"])
    new = write(run.topic(topic), rng, 400) if grows else []
    if grows:
        one.process.send_signal(signal.SIGCONT)
    errors_and_reading(run, one, topic, rng, new)
    one.stop()


def errors_and_reading(
    run: Run, one: Instance, topic: str, rng: random.Random, new: list[Trace]
) -> None:
    word = "does not hold any more what was committed"
    wait_until("the log tells of it", lambda: word in one.log(), 60)
    new += write(run.topic(topic), rng, 100)
    run.wait_for_commits(topic, topic)
    at_rest([one])
    result = compare(new, [one.sink])
    faults = [fault for fault in result.problems if "nobody sent" not in fault]
    run.say(f"{topic}: {result}")
    run.check(f"{topic}: what came afterwards is whole", faults + ledger(one))
    errors = one.metrics().total("kafka_errors_total")
    run.check(f"{topic}: it is counted as an error", [] if errors else ["it is not"])
