"""The only broker is killed under load, and comes back."""

import signal
import time

from collectors import Collector
from run import Run
from traffic import Load


# Longer than the exporter waits between two attempts (`max_interval` in collector.yaml).
QUIET_S = 8


def wait_until_written(run: Run) -> None:
    """A Collector that is stopped gives up what it is to send again, so that has to be through."""
    ends, since = run.broker.ends("outage"), time.monotonic()
    while time.monotonic() < since + QUIET_S:
        time.sleep(0.5)
        now = run.broker.ends("outage")
        if now != ends:
            ends, since = now, time.monotonic()


def part(run: Run) -> None:
    run.broker.create("outage", 6)
    # What Collectors hold back meanwhile comes before its trace is decided.
    wait_s = run.told.outage + 15
    instances = [run.instance(f"outage-{n}", "outage", wait_s=wait_s).start() for n in range(2)]
    collector = Collector(
        run.told.collector, run.children, run.broker.address, "outage", "outage-collector"
    )
    load = Load(collector.send, run.told.rate, run.told.seed)
    load.start()
    time.sleep(5)
    run.broker.stop(signal.SIGKILL)
    time.sleep(run.told.outage)
    for one in instances:
        run.check(f"{one.name} runs without a broker", [] if one.is_running() else ["no"])
    run.broker.start()
    time.sleep(5)
    traces = load.finish()
    wait_until_written(run)
    collector.stop()
    run.wait_for_commits("outage", "outage", 120)
    run.settle("outage", instances, f"{run.told.outage} s without a broker", traces)
    for one in instances:
        one.stop()
