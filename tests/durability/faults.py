"""Lets the disk of a durable Tailwater fail under load, and mends it again.

Meanwhile requests are refused, and deciding and delivering go on. Afterwards requests are taken
again without a restart. Then the disk fails once more and the process is killed meanwhile. In the
end nothing that was acknowledged is lost, and the ledger is exact.
"""

import argparse
import pathlib
import signal
import statistics
import sys
import tempfile
import threading
import time

from disks import DISKS, NotHere
from service import SENDERS, Sender, Sink, Tailwater, at_rest, ledger, start_sink, verify

# Shorter than the fault: traces accepted before it are decided meanwhile.
DECISION_WAIT = "1s"
# From the fault to the first error, and for requests that are under way.
GRACE_SECONDS = 1
BACK_SECONDS = 15
MAX_SIZE_MIB = 256


class Mistakes(list):
    def unless(self, is_so, what):
        if not is_so:
            self.append(what)


class Load:
    """The senders."""

    def __init__(self, port, seed):
        self.stop = threading.Event()
        self.senders = [
            Sender(port, seed * 100 + number, self.stop, all_fail=True) for number in range(SENDERS)
        ]
        for sender in self.senders:
            sender.start()

    def acknowledged(self):
        return [span for sender in self.senders for span in sender.acknowledged]

    def refused(self):
        return sum(sender.answers[503] for sender in self.senders)

    def latencies(self, since):
        pairs = [pair for sender in self.senders for pair in list(sender.latencies)]
        return [seconds for at, seconds in pairs if at >= since]

    def until_acknowledged(self, more):
        """Returns the seconds until this many more spans are acknowledged."""
        began, goal = time.monotonic(), len(self.acknowledged()) + more
        while len(self.acknowledged()) < goal:
            if time.monotonic() > began + BACK_SECONDS:
                return None
            time.sleep(0.02)
        return time.monotonic() - began

    def end(self):
        self.stop.set()
        for sender in self.senders:
            sender.join()


def until_told(folder, words):
    """Whether the log says this within some seconds."""
    until = time.monotonic() + BACK_SECONDS
    while words not in (folder / "log").read_text():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def fail(disk, tailwater, load, hold, mistakes):
    """The first fault. Returns a line about it."""
    before, began = tailwater.metrics(), time.monotonic()
    refused = load.refused()
    disk.turn_on(tailwater.process)
    time.sleep(GRACE_SECONDS)
    early = len(load.acknowledged())
    time.sleep(hold)
    now = tailwater.metrics()
    acknowledged, refused = len(load.acknowledged()) - early, load.refused() - refused
    errors = now["durability_errors_total"] - before["durability_errors_total"]
    latencies = load.latencies(began)
    mistakes.unless(now["decisions_total"] > before["decisions_total"], "nothing was decided")
    arrived = now["exporter_sent_spans_total"] - before["exporter_sent_spans_total"]
    mistakes.unless(arrived > 0, "nothing was delivered")
    mistakes.unless(tailwater.get("/-/healthy").status == 200, "not healthy")
    if disk.refuses:
        mistakes.unless(refused, "nothing was refused")
        mistakes.unless(errors, "no error was counted")
    else:
        mistakes.unless(not refused and not errors, f"{refused} refused, {errors} errors")
        mistakes.unless(acknowledged, "nothing was acknowledged")
    if disk.stops_all:
        mistakes.unless(not acknowledged, f"{acknowledged} spans acknowledged")
        mistakes.unless(now["window_spans"] == 0, f"{now['window_spans']:.0f} spans undecided")
    by_log = {
        log: int(now[f'durability_errors_total{{log="{log}"}}'])
        for log in ("intake", "outbox", "decisions")
    }
    grown = (now["durability_bytes"] - before["durability_bytes"]) / (1 << 20)
    line = f"{hold:g} s: {refused} requests refused, errors {by_log}, logs {grown:+.0f} MiB"
    if latencies:
        median, longest = statistics.median(latencies), max(latencies)
        line += f", {len(latencies)} acknowledged after {median:.2f} s, at most {longest:.2f} s"
    return line


def fault(binary, disk, folder, options, mistakes):
    arguments = (binary, folder, disk.mode, start_sink())
    tailwater = Tailwater(
        *arguments, wait=DECISION_WAIT, logs=disk.logs, max_size_mib=MAX_SIZE_MIB
    )
    tailwater.start()
    try:
        load = Load(tailwater.port, options.seed)
        mistakes.unless(load.until_acknowledged(2_000) is not None, "no load")
        time.sleep(1.5)
        lines = [fail(disk, tailwater, load, options.hold, mistakes)]
        if disk.ends:
            disk.turn_off()
            back = load.until_acknowledged(500)
            mistakes.unless(back is not None, f"not back within {BACK_SECONDS} s")
            lines.append(f"back after {back or 0:.1f} s")
            if disk.refuses:
                is_told = until_told(folder, "the disk accepts records again")
                mistakes.unless(is_told, "the log does not say that it is over")
            disk.turn_on(tailwater.process)
            time.sleep(GRACE_SECONDS)
        tailwater.kill()
        disk.prepare_restart()
        tailwater.start()
        back = load.until_acknowledged(500)
        mistakes.unless(back is not None, "nothing is taken after a restart")
        load.end()
        metrics = at_rest(tailwater)
        tailwater.process.send_signal(signal.SIGTERM)
        code = tailwater.process.wait(60)
    finally:
        if tailwater.process.poll() is None:
            tailwater.kill()
    acknowledged = load.acknowledged()
    traces, lost, differently, again = verify(acknowledged)
    mistakes.unless(not lost, f"{lost} acknowledged spans lost")
    mistakes.unless(not differently, f"{differently} traces decided differently")
    mistakes.unless(ledger(metrics) == 0, f"ledger {ledger(metrics):+.0f}")
    mistakes.unless(code == 0, f"exit code {code}")
    mistakes.extend(disk.verify())
    text = (folder / "log").read_text()
    if disk.refuses:
        mistakes.unless("Check the disk" in text, "the log does not say what to do")
    lines.append(
        f"killed meanwhile; of {len(acknowledged)} acknowledged spans of {traces} traces {lost} "
        f"lost, {differently} traces decided differently, {again} spans arrived again"
    )
    return lines, text


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("binary")
    parser.add_argument("--fault", action="append", choices=[disk.name for disk in DISKS])
    parser.add_argument("--hold", type=float, default=3, help="seconds that a fault lasts")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    failed = False
    for kind in DISKS:
        if options.fault and kind.name not in options.fault:
            continue
        Sink.arrived.clear()
        with tempfile.TemporaryDirectory(prefix="tailwater-faults-") as folder:
            folder = pathlib.Path(folder)
            disk, mistakes = None, Mistakes()
            try:
                disk = kind(folder)
                lines, log = fault(options.binary, disk, folder, options, mistakes)
            except NotHere as reason:
                print(f"{kind.name}: NOT RUN: {reason}", flush=True)
                continue
            finally:
                if disk is not None:
                    disk.remove()
            print(f"{kind.name} ({kind.how}; mode {kind.mode})", flush=True)
            print("".join(f"  {line}\n" for line in lines), end="", flush=True)
            if mistakes:
                failed = True
                print("".join(f"  FAILED: {it}\n" for it in mistakes) + log[-2000:], flush=True)
    if failed:
        sys.exit("a promise is broken")


if __name__ == "__main__":
    main()
