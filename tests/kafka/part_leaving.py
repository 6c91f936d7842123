"""SIGTERM with and without `leave_on_shutdown`."""

import time

from children import wait_until
from instance import partitions
from run import Run
from traffic import Load, request

# Longer than anything here takes: partitions move within it only if they are given up.
SESSION_S = 45


def part(run: Run) -> None:
    run.broker.create("leaving", 4)
    kafka = {"session_timeout": f"{SESSION_S}s"}
    stays = run.instance("leaving-stays", "leaving", kafka=kafka).start()
    silent = run.instance("leaving-silent", "leaving", kafka=kafka).start()
    leaver = run.instance("leaving-leaver", "leaving", kafka=kafka | {"leave_on_shutdown": True})

    def share(count: int, of: list) -> None:
        wait_until(f"{count} partitions are shared", lambda: partitions(of) == count, 30)
        wait_until("each has some", lambda: all(partitions([one]) for one in of), 30)

    share(4, [stays, silent])
    topic = run.topic("leaving")

    def send(spans: list) -> None:
        for span in spans:
            topic.put(request([span]).SerializeToString(), span.trace_id.hex().encode())
        topic.producer.flush(10)

    load = Load(send, run.told.rate // 4 + 1, run.told.seed)
    load.start()
    time.sleep(4)
    # Restarted within the session: it gets its partitions back, and nobody else is disturbed.
    before = stays.metrics().total("kafka_rebalances_total")
    silent.stop()
    kept = partitions([stays])
    silent.start()
    share(4, [stays, silent])
    after = stays.metrics().total("kafka_rebalances_total")
    faults = [f"the other instance has {kept} partitions"] * (kept == 4)
    faults += [f"it had {after - before:.0f} rebalances"] * (after != before)
    run.check("SIGTERM gives nothing up: a restart moves no partition", faults)
    leaver.start()
    share(4, [stays, silent, leaver])
    time.sleep(2)
    leaver.stop()
    began = time.monotonic()
    wait_until("what it gave up is taken", lambda: partitions([stays, silent]) == 4, SESSION_S - 5)
    run.say(f"partitions of the one that left were taken after {time.monotonic() - began:.1f} s")
    time.sleep(2)
    traces = load.finish()
    run.settle("leaving", [stays, silent, leaver], "SIGTERM, leaving and not", traces)
    for one in (stays, silent):
        one.stop()
