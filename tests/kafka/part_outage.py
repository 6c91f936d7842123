"""The only broker is killed under load, and comes back."""

import signal
import time

from collectors import Collector
from instance import Instance
from run import Run
from traffic import Load

# Longer than the exporter waits between two attempts (`max_interval` in collector.yaml).
QUIET_S = 8
WAIT_S = 4


def wait_until_written(run: Run) -> None:
    """A Collector that is stopped loses the requests that it must send again, so none may wait."""
    ends, since = run.broker.ends("outage"), time.monotonic()
    while time.monotonic() < since + QUIET_S:
        time.sleep(0.5)
        now = run.broker.ends("outage")
        if now != ends:
            ends, since = now, time.monotonic()


def decided(one: Instance) -> float:
    return one.metrics().total("decisions_total")


def part(run: Run) -> None:
    run.broker.create("outage", 6)
    instances = [run.instance(f"outage-{n}", "outage", wait_s=WAIT_S).start() for n in range(2)]
    collector = Collector(
        run.told.collector, run.children, run.broker.address, "outage", "outage-collector"
    )
    # What the Collector holds back may come after the decision, as late spans that follow it. So the
    # first span decides.
    load = Load(collector.send, run.told.rate, run.told.seed, fails_first=True)
    load.start()
    time.sleep(2 * WAIT_S)
    run.broker.stop(signal.SIGKILL)
    # What had been read by then is due by then; of the rest nobody knows whether it is complete.
    time.sleep(2)
    before = [decided(one) for one in instances]
    time.sleep(max(WAIT_S, run.told.outage - 2))
    after = [decided(one) for one in instances]
    handed = sum(one.metrics().total("spans_handed_over_total") for one in instances)
    run.say(f"decisions at the beginning and the end of the outage: {before}, {after}")
    run.say(f"undecided spans that were let go when the session ended: {handed:.0f}")
    run.check("nothing is decided without a broker", [] if before == after else ["it is"])
    run.broker.start()
    time.sleep(5)
    traces = load.finish()
    wait_until_written(run)
    collector.stop()
    run.wait_for_commits("outage", "outage", 120)
    run.settle("outage", instances, f"{run.told.outage} s without a broker", traces)
    for one in instances:
        one.stop()
