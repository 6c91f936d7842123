"""Kills a durable Tailwater at random moments under load."""

import argparse
import pathlib
import random
import signal
import statistics
import sys
import tempfile
import threading
import time

from service import SENDERS, Sender, Tailwater, at_rest, ledger, start_sink, verify

# A trace is complete long before it is decided, even if a kill comes in between.
DECISION_WAIT = "4s"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("binary")
    parser.add_argument("--moments", type=int, default=15)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mode", choices=["process", "power"], default="process")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    sink = start_sink()
    with tempfile.TemporaryDirectory(prefix="tailwater-durability-") as folder:
        directory = pathlib.Path(folder)
        tailwater = Tailwater(options.binary, directory, options.mode, sink, wait=DECISION_WAIT)
        tailwater.start()
        stop = threading.Event()
        senders = [Sender(tailwater.port, options.seed * 100 + n, stop) for n in range(SENDERS)]
        for sender in senders:
            sender.start()
        ready, damaged = [], 0
        for _ in range(options.moments):
            # Sometimes shortly after the start, mostly with a full window.
            time.sleep(chance.choice([0.05, 0.5, 3.0]) * chance.random())
            tailwater.kill()
            ready.append(tailwater.start())
            damaged += tailwater.metrics()["durability_damaged_records_total"]
        stop.set()
        for sender in senders:
            sender.join()
        metrics = at_rest(tailwater)
        tailwater.process.send_signal(signal.SIGTERM)
        code = tailwater.process.wait(60)
        acknowledged = [span for sender in senders for span in sender.acknowledged]
        traces, lost, differently, again = verify(acknowledged)
        off = ledger(metrics)
        print(
            f"{options.moments} kills, mode {options.mode}, seed {options.seed}: "
            f"{len(acknowledged)} spans of {traces} traces acknowledged\n"
            f"acknowledged spans lost: {lost}\ntraces decided differently: {differently}\n"
            f"spans that arrived more than once: {again}\n"
            f"torn records: {damaged:.0f}\n"
            f"ready after a kill: median {statistics.median(ready):.3f} s, "
            f"longest {max(ready):.3f} s\nledger: {off:+.0f}, exit code {code}"
        )
        if lost or differently or off or code or not acknowledged:
            log = (pathlib.Path(folder) / "log").read_text()[-3000:]
            sys.exit(f"a promise is broken; the end of the log:\n{log}")


if __name__ == "__main__":
    main()
