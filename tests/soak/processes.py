"""The processes of a scenario: the service, the load generator and its sink, and what the kernel
and /metrics report about them."""

import json
import os
import queue
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

BINARY, LOAD_GENERATOR = os.environ["SOAK_BINARY"], os.environ["SOAK_LOAD_GENERATOR"]
LOGS = Path(os.environ["SOAK_LOGS"])
STARTED = []


class Broken(Exception):
    """A broken promise, or a process that has ended."""


def free_ports(count):
    """Ports that were free a moment ago, all different because all are bound at once."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listening.getsockname()[1] for listening in sockets]
    for listening in sockets:
        listening.close()
    return ports


def end_all():
    """Ends the processes that this one has started and that still run."""
    for child in STARTED:
        if child.poll() is None:
            child.kill()
            child.wait()


def wait_for(what, condition, seconds=30, pause=0.05):
    """Waits until a condition holds, and returns its value."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Broken(f"not within {seconds} s: {what}")
        time.sleep(pause)


def read_lines(output, lines):
    """Puts each line of JSON into the queue, and None at the end."""
    for line in output:
        lines.put(json.loads(line))
    lines.put(None)


class Subcommand:
    """A subcommand of the load generator: a line in, a line of JSON out."""

    def __init__(self, *arguments):
        log = open(LOGS / f"load-generator-{arguments[0]}.log", "a")
        self.child = subprocess.Popen([LOAD_GENERATOR, *map(str, arguments)], stdin=subprocess.PIPE,
                                      stdout=subprocess.PIPE, stderr=log, text=True, bufsize=1)
        STARTED.append(self.child)
        self.lines = queue.Queue()
        # The thread of a killed process can end after `come_back`, so it must not look at `self`.
        threading.Thread(target=read_lines, args=(self.child.stdout, self.lines), daemon=True).start()
        self.ready = self.answer()

    def answer(self, seconds=90):
        answer = self.lines.get(timeout=seconds)
        if answer is None:
            raise Broken(f"the load generator ended: {self.child.args}")
        return answer

    def lap(self):
        self.child.stdin.write("lap\n")
        return self.answer()

    def end(self):
        """Ends it and returns the last lap."""
        self.child.stdin.close()
        lap = self.answer()
        self.child.wait()
        return lap


def load(address, rate, *more, seconds=7200, connections=4, in_flight=4):
    return Subcommand("load", "--target", address, "--rate", rate, "--max-seconds", seconds,
               "--connections", connections, "--in-flight", in_flight, *more)


class Sink(Subcommand):
    """A backend at a fixed port that can stop and start again; counts over all its lives."""

    def __init__(self, port=None):
        self.port = port or free_ports(1)[0]
        self.spans_before = 0
        super().__init__("sink", "--listen", f"127.0.0.1:{self.port}", "--max-seconds", 7200)

    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def spans(self):
        self.spans_before += self.lap()["spans"]
        return self.spans_before

    def go(self):
        """Ends it as a crash would, but keeps the count."""
        self.spans()
        self.child.kill()
        self.child.wait()

    def come_back(self):
        super().__init__("sink", "--listen", f"127.0.0.1:{self.port}", "--max-seconds", 7200)

    def signal(self, number):
        self.child.send_signal(number)


POLICIES = """
[[policy]]
name = "errors"
type = "status_code"
status_codes = ["ERROR"]
[[policy]]
name = "slow"
type = "latency"
threshold_ms = 2000
[[policy]]
name = "baseline"
type = "probabilistic"
sampling_percentage = 10
"""
# The decision cache reaches its full size after seconds instead of minutes.
SOON_STEADY = 'decision_cache_ttl = "5s"\ndecision_log_size = 10000'
KEEP_ALL = '[[policy]]\nname = "all"\ntype = "always_sample"\n'


class Service:
    """`tailwater run`, and what can be observed from outside."""

    def __init__(self, sink, name="tailwater", policies=POLICIES, wait="2s", after_root="500ms",
                 memory_mib=256, remembered="", more="", patience="300s", environment=None):
        self.grpc, self.http, self.admin = (f"127.0.0.1:{port}" for port in free_ports(3))
        self.config = LOGS / f"{name}.toml"
        self.policies = policies
        self.head = f"""{more}
[receiver.grpc]
endpoint = "{self.grpc}"
[receiver.http]
endpoint = "{self.http}"
[sampling]
decision_wait = "{wait}"
decision_wait_after_root_received = "{after_root}"
memory_limit_mib = {memory_mib}
{remembered}
[exporter.otlp]
endpoint = "{sink.url()}"
[exporter.otlp.retry_on_failure]
initial_interval = "200ms"
max_interval = "1s"
max_elapsed_time = "{patience}"
[telemetry]
endpoint = "{self.admin}"
log_format = "json"
"""
        self.config.write_text(self.head + policies)
        self.log = LOGS / f"{name}.log"
        self.log.write_text("")
        self.memory_limit = memory_mib << 20
        self.environment = {**os.environ, **(environment or {})}
        self.start()

    def start(self):
        """Starts the service; returns the seconds until it was ready."""
        begin = time.monotonic()
        command = [BINARY, "run", "--config", str(self.config)]
        with open(self.log, "a") as log:
            self.child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log,
                                          env=self.environment)
        STARTED.append(self.child)
        wait_for("ready", lambda: self.get("/-/ready")[0] == 200, pause=0.002)
        return time.monotonic() - begin

    def get(self, path, timeout=10):
        try:
            with urllib.request.urlopen(f"http://{self.admin}{path}", timeout=timeout) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metrics(self):
        status, text = self.get("/metrics")
        if status != 200:
            raise Broken(f"/metrics answers {status}")
        series = (line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("tailwater_"))
        return Metrics({name[len("tailwater_"):]: float(value) for name, value in series})

    def signal(self, number):
        self.child.send_signal(number)

    def proc(self, key):
        """A number of /proc/PID/status, in bytes if it has a unit."""
        text = Path(f"/proc/{self.child.pid}/status").read_text()
        number, unit = re.search(rf"^{key}:\s+(\d+)( kB)?", text, re.M).groups()
        return int(number) * (1024 if unit else 1)

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.child.pid}/fd"))

    def at_rest(self, seconds=60):
        """Waits until the window and the queue are empty, and checks the ledger."""
        def rest():
            metrics = self.metrics()
            held = metrics.sum("window_spans") + metrics.sum("exporter_queue_spans")
            return metrics if held == 0 else None
        metrics = wait_for("nothing buffered or queued", rest, seconds)
        metrics.check_ledger()
        return metrics

    def stop(self, expected=0, seconds=35):
        self.signal(signal.SIGTERM)
        begin = time.monotonic()
        code = self.child.wait(timeout=seconds)
        if code != expected:
            raise Broken(f"exit code {code} and not {expected} after SIGTERM")
        return time.monotonic() - begin


class Metrics(dict):
    def sum(self, metric, label=""):
        of_metric = (value for name, value in self.items()
                     if name.split("{")[0] == metric and label in name)
        return sum(of_metric)

    def check_ledger(self):
        accepted, kept = self.sum("receiver_accepted_spans_total"), self.sum("spans_kept_total")
        held = kept + self.sum("spans_dropped_total") + self.sum("window_spans")
        if accepted != held:
            raise Broken(f"accepted {accepted:.0f} != kept + dropped + buffered {held:.0f}")
        left = self.sum("exporter_sent_spans_total") + self.sum("exporter_failed_spans_total")
        left += self.sum("exporter_queue_spans")
        if kept != left:
            raise Broken(f"kept {kept:.0f} != sent + failed + queued {left:.0f}")


class Sampler(threading.Thread):
    """Samples memory, descriptors and threads, and a few metrics, until it is told to end."""

    def __init__(self, service, every=0.25, with_metrics=False):
        super().__init__(daemon=True)
        self.service, self.every, self.with_metrics = service, every, with_metrics
        self.rows, self.is_over = [], threading.Event()
        self.start()

    def run(self):
        while not self.is_over.wait(self.every):
            try:
                row = {"at": time.monotonic(), "rss": self.service.proc("VmRSS"),
                       "threads": self.service.proc("Threads"), "fds": self.service.descriptors()}
                if self.with_metrics:
                    row["metrics"] = self.service.metrics()
                self.rows.append(row)
            except (OSError, Broken, AttributeError):
                continue

    def end(self):
        self.is_over.set()
        self.join()
        return self.rows

    def most(self, key):
        return max(row[key] for row in self.rows)
