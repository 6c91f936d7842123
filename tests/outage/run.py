#!/usr/bin/env python3
"""An outage of the backend, for real: two processes, a SIGKILL and a restart.

    tests/outage/run.py [--seconds 300] [--rate 5000] [--down kill|stop] [path to the binary]

The backend is a second Tailwater that drops all it gets, so that its own counters say what arrived
over OTLP/gRPC. Spans of 700 bytes, all of them kept, come in over OTLP/HTTP at `--rate` a second
for 10 s before the outage, during it, and until the queue is empty again. `kill` ends the backend
with SIGKILL; `stop` stops it with SIGSTOP, so that its connections stay open and silent, and ends
it when the outage is over. Prints when the first spans arrived after its return, when the queue was
empty, how many were lost, and the peak of memory. Exits with 1 if a span was lost or anything took
too long. Needs Python 3.11 and nothing else.
"""

import argparse
import http.client
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
SPANS_A_TRACE = 10
GRPC, HTTP, ADMIN = 24317, 24318, 29464
BACKEND_GRPC, BACKEND_HTTP, BACKEND_ADMIN = 25317, 25318, 30464

CONFIG = """
[receiver.grpc]
endpoint = "127.0.0.1:{grpc}"
[receiver.http]
endpoint = "127.0.0.1:{http}"
[sampling]
decision_wait = "2s"
decision_wait_after_root_received = "1s"
memory_limit_mib = {memory}
[exporter.otlp]
endpoint = "http://127.0.0.1:{backend}"
[exporter.otlp.sending_queue]
queue_size_mib = {queue}
[exporter.otlp.retry_on_failure]
max_elapsed_time = "{patience}s"
[telemetry]
endpoint = "127.0.0.1:{admin}"
[[policy]]
name = "all"
type = "always_sample"
sampling_percentage = {percentage}
"""


def field(number, payload):
    """A length-delimited field of protobuf."""
    length, prefix = len(payload), bytes([number << 3 | 2])
    while length >= 0x80:
        prefix += bytes([length & 0x7F | 0x80])
        length >>= 7
    return prefix + bytes([length]) + payload


def request(traces):
    """An encoded ExportTraceServiceRequest of traces of ten spans."""
    filler = field(9, field(1, b"filler") + field(2, field(1, b"x" * 640)))
    spans = b""
    for _ in range(traces):
        trace, root = os.urandom(16), os.urandom(8)
        for index in range(SPANS_A_TRACE):
            span = field(1, trace) + field(2, root if index == 0 else os.urandom(8))
            spans += field(2, span + (b"" if index == 0 else field(4, root)) + filler)
    return field(1, field(1, b"") + field(2, spans))


def metrics(admin):
    """Sums over the series of each metric; None where nobody answers."""
    try:
        connection = http.client.HTTPConnection("127.0.0.1", admin, timeout=2)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    except OSError:
        return None
    sums = {}
    for line in text.splitlines():
        if line.startswith("tailwater_"):
            series, value = line.rsplit(" ", 1)
            name = series.split("{")[0].removeprefix("tailwater_")
            sums[name] = sums.get(name, 0.0) + float(value)
    return sums


class Sender(threading.Thread):
    """Sends at a steady rate until stopped; what is refused counts, and is not sent again."""

    def __init__(self, rate):
        super().__init__(daemon=True)
        self.rate, self.accepted, self.refused = rate, 0, 0
        self.is_over = threading.Event()

    def run(self):
        connection = http.client.HTTPConnection("127.0.0.1", HTTP)
        traces = max(1, self.rate // SPANS_A_TRACE // 20)
        headers = {"content-type": "application/x-protobuf"}
        began, sent = time.monotonic(), 0
        while not self.is_over.is_set():
            connection.request("POST", "/v1/traces", request(traces), headers)
            answer = connection.getresponse()
            answer.read()
            if answer.status == 200:
                self.accepted += traces * SPANS_A_TRACE
            else:
                self.refused += traces * SPANS_A_TRACE
            sent += traces * SPANS_A_TRACE
            time.sleep(max(0.0, began + sent / self.rate - time.monotonic()))


def start(binary, folder, name, **values):
    """Starts an instance and waits until it answers."""
    path = folder / f"{name}.toml"
    path.write_text(CONFIG.format(**values))
    log = (folder / f"{name}.log").open("a")
    process = subprocess.Popen([binary, "run", "--config", path], stdout=log, stderr=log)
    until("it started", lambda: metrics(values["admin"]), 10)
    return process


def until(what, wanted, seconds):
    """Waits, and returns how long."""
    began = time.monotonic()
    while not wanted():
        if time.monotonic() - began > seconds:
            sys.exit(f"not within {seconds} s: {what}")
        time.sleep(0.05)
    return time.monotonic() - began


def peak_mib(process):
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--rate", type=int, default=5000)
    parser.add_argument("--down", choices=["kill", "stop"], default="kill")
    parser.add_argument("binary", nargs="?", default=REPOSITORY / "target/release/tailwater")
    options = parser.parse_args()

    folder = pathlib.Path(tempfile.mkdtemp(prefix="tailwater-outage-"))
    # The README's formula: kept spans a second x bytes a span x seconds, and some to spare.
    queue = int(options.rate * 750 * (options.seconds + 30) / 2**20 * 1.3) + 16
    # As the README says: longer than the outage, which includes the start of the backend.
    patience = options.seconds + 120
    backend_values = {
        "grpc": BACKEND_GRPC, "http": BACKEND_HTTP, "admin": BACKEND_ADMIN, "backend": 9,
        "memory": 512, "queue": 16, "percentage": 0, "patience": patience,
    }
    backend = start(options.binary, folder, "backend", **backend_values)
    tailwater = start(
        options.binary, folder, "tailwater", grpc=GRPC, http=HTTP, admin=ADMIN,
        backend=BACKEND_GRPC, memory=2 * queue + 256, queue=queue, percentage=100,
        patience=patience,
    )
    sender = Sender(options.rate)
    sender.start()
    time.sleep(10)
    backend.send_signal(signal.SIGKILL if options.down == "kill" else signal.SIGSTOP)
    began = time.monotonic()
    if options.down == "kill":
        backend.wait()
    print(f"the backend is down ({options.down}); {sender.accepted} spans accepted so far")
    while time.monotonic() - began < options.seconds:
        time.sleep(1)
    queued = metrics(ADMIN)["exporter_queue_spans"]
    if options.down == "stop":
        backend.kill()
        backend.wait()
    print(f"after {options.seconds} s: {queued:.0f} spans queued; the backend returns")
    backend = start(options.binary, folder, "backend", **backend_values)
    arrived = lambda: (metrics(BACKEND_ADMIN) or {}).get("receiver_accepted_spans_total", 0)
    first = until("the first spans arrive", lambda: arrived() > 0, 60)
    few = options.rate * 4
    drained = until(
        "the queue is empty", lambda: metrics(ADMIN)["exporter_queue_spans"] < few, 300
    )
    sender.is_over.set()
    sender.join()
    rest = lambda m: m["window_spans"] == 0 and m["exporter_queue_spans"] == 0
    until("all is delivered", lambda: rest(metrics(ADMIN)), 60)
    final = metrics(ADMIN)
    lost, sent = final["exporter_failed_spans_total"], final["exporter_sent_spans_total"]
    rate = queued / drained + options.rate if drained else float("inf")
    print(f"first spans arrived {first:.1f} s after the return")
    print(f"queue empty after {drained:.1f} s more: {rate:.0f} spans/s, {rate / options.rate:.1f} x nominal")
    print(f"accepted {sender.accepted}, refused {sender.refused}, sent {sent:.0f}, lost {lost:.0f}")
    print(f"peak memory {peak_mib(tailwater)} MiB, queue of {queue} MiB; logs in {folder}")
    tailwater.terminate()
    code = tailwater.wait(timeout=40)
    backend.kill()
    balanced = sender.accepted == sent + lost
    is_fine = lost == 0 and sender.refused == 0 and first <= 30 and drained <= 180
    sys.exit(0 if is_fine and balanced and rate >= 2 * options.rate and code == 0 else 1)


if __name__ == "__main__":
    main()
