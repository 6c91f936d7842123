"""A durable Tailwater, the senders before it, the sink behind it, and what must have arrived.

Senders repeat a request until it is acknowledged, as SDKs do. In the end every acknowledged span of
a trace that the policies keep must have arrived, and no span of any other trace. The policies
depend on nothing but the trace, so that is what a run without faults would have decided.
"""

import collections
import gzip
import http.client
import http.server
import pathlib
import random
import subprocess
import sys
import threading
import time
import urllib.request

import otlp

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "real"))

from children import free_ports  # noqa: E402

SPANS_PER_TRACE = 4
TRACES_AT_ONCE = 12
SENDERS = 3
# The senders' pause before a request is repeated, and between two requests.
RETRY_SECONDS = 0.02
PAUSE_SECONDS = 0.002
READY_SECONDS = 60
REST_SECONDS = 60

POLICIES = """
[[policy]]
name = "errors"
type = "status_code"
status_codes = ["ERROR"]

[[policy]]
name = "half"
type = "probabilistic"
sampling_percentage = 50
"""


class Sink(http.server.BaseHTTPRequestHandler):
    """Counts the spans that arrive, unless it is `away`."""

    protocol_version = "HTTP/1.1"
    arrived = collections.Counter()
    away = threading.Event()
    lock = threading.Lock()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        away = Sink.away.is_set()
        found = [] if away else list(otlp.spans(body))
        with Sink.lock:
            Sink.arrived.update(found)
        self.send_response(503 if away else 200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class Quiet(http.server.ThreadingHTTPServer):
    """A process that is killed resets its connections."""

    def handle_error(self, *_):
        pass


def start_sink():
    """Returns the port of the sink."""
    sink = Quiet(("127.0.0.1", 0), Sink)
    threading.Thread(target=sink.serve_forever, daemon=True).start()
    return sink.server_port


class Sender(threading.Thread):
    """Sends traces whose spans are spread over several requests."""

    def __init__(self, port, seed, stop, *, all_fail=False):
        """With `all_fail`, all spans of a trace fail or none, so that any of them decides it."""
        super().__init__(daemon=True)
        self.port, self.stop, self.all_fail = port, stop, all_fail
        self.random = random.Random(seed)
        self.acknowledged = []
        self.answers = collections.Counter()
        # Acknowledged requests, with the time of the acknowledgement.
        self.latencies = []
        self.connection = None

    def run(self):
        waiting = []
        while not self.stop.is_set() or waiting:
            if not self.stop.is_set():
                waiting += self.traces()
            self.random.shuffle(waiting)
            batch, waiting = waiting[: len(waiting) // 2 + 1], waiting[len(waiting) // 2 + 1 :]
            body = otlp.request(batch)
            while not self.post(body):
                time.sleep(RETRY_SECONDS)
            self.acknowledged += batch
            time.sleep(PAUSE_SECONDS)

    def traces(self):
        for _ in range(TRACES_AT_ONCE):
            trace = f"{self.random.getrandbits(128) | 1:032x}"
            fails = self.random.random() < 0.05
            for number in range(SPANS_PER_TRACE):
                span = f"{self.random.getrandbits(64) | 1:016x}"
                yield trace, span, fails and (self.all_fail or number == 0)

    def post(self, body):
        headers = {"content-type": "application/json"}
        if self.random.random() < 0.5:
            body, headers["content-encoding"] = gzip.compress(body, 1), "gzip"
        try:
            if self.connection is None:
                self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
            began = time.monotonic()
            self.connection.request("POST", "/v1/traces", body, headers)
            answer = self.connection.getresponse()
            answer.read()
            self.answers[answer.status] += 1
            if answer.status == 200:
                now = time.monotonic()
                self.latencies.append((now, now - began))
            return answer.status == 200
        except (OSError, http.client.HTTPException):
            self.connection = None
            return False


class Tailwater:
    """The process under test."""

    def __init__(
        self, binary, directory, mode, sink, *, wait, logs=None, max_size_mib=4096, memory_mib=512
    ):
        self.binary = binary
        self.grpc, self.port, self.telemetry = free_ports(3)
        self.config = directory / "tailwater.toml"
        self.log = open(directory / "log", "ab")
        self.logs = logs or directory / "logs"
        self.config.write_text(
            f'[receiver.grpc]\nendpoint = "127.0.0.1:{self.grpc}"\n'
            f'[receiver.http]\nendpoint = "127.0.0.1:{self.port}"\n'
            f'[sampling]\ndecision_wait = "{wait}"\n'
            'decision_wait_after_root_received = "0s"\n'
            f"memory_limit_mib = {memory_mib}\n"
            f'[exporter.otlp]\nendpoint = "http://127.0.0.1:{sink}"\nprotocol = "http/protobuf"\n'
            f'[durability]\nmode = "{mode}"\ndirectory = "{self.logs}"\n'
            f"max_size_mib = {max_size_mib}\n"
            f'[telemetry]\nendpoint = "127.0.0.1:{self.telemetry}"\n' + POLICIES
        )

    def start(self, within=READY_SECONDS):
        """Starts it, and returns the seconds until it was ready."""
        began = time.monotonic()
        command = [self.binary, "run", "--config", self.config]
        self.process = subprocess.Popen(command, stderr=self.log, stdout=self.log)
        while time.monotonic() < began + within:
            try:
                if self.get("/-/ready").status == 200:
                    return time.monotonic() - began
            except OSError:
                pass
            if self.process.poll() is not None:
                sys.exit(f"it ended: {self.process.returncode}; see {self.log.name}")
            time.sleep(0.005)
        sys.exit("it does not become ready")

    def kill(self):
        self.process.kill()
        self.process.wait()

    def get(self, path):
        return urllib.request.urlopen(f"http://127.0.0.1:{self.telemetry}{path}", timeout=5)

    def metrics(self):
        sums = collections.Counter()
        for line in self.get("/metrics").read().decode().splitlines():
            if line.startswith("tailwater_"):
                series, value = line.rsplit(" ", 1)
                series = series.removeprefix("tailwater_")
                sums[series.split("{")[0]] += float(value)
                if "{" in series:
                    sums[series] += float(value)
        return sums


def is_kept(trace, failed):
    return failed or int(trace[-14:], 16) >= 1 << 55


def verify(acknowledged):
    """Compares what arrived with what was acknowledged; returns the mistakes."""
    spans, fails = collections.defaultdict(set), collections.defaultdict(bool)
    for trace, span, failed in acknowledged:
        spans[trace].add(span)
        fails[trace] |= failed
    lost = differently = 0
    for trace, ids in spans.items():
        kept = is_kept(trace, fails[trace])
        missing = sum((trace, span) not in Sink.arrived for span in ids)
        if kept and missing == len(ids) or not kept and missing < len(ids):
            differently += 1
        lost += missing if kept else 0
    again = sum(count - 1 for count in Sink.arrived.values())
    return len(spans), lost, differently, again


def ledger(metrics):
    """Zero, at rest."""
    settled = metrics["spans_kept_total"] + metrics["spans_dropped_total"]
    return metrics["receiver_accepted_spans_total"] - settled


def at_rest(tailwater):
    until = time.monotonic() + REST_SECONDS
    while time.monotonic() < until:
        metrics = tailwater.metrics()
        if metrics["window_spans"] == 0 and metrics["exporter_queue_spans"] == 0:
            return metrics
        time.sleep(0.1)
    sys.exit(f"not at rest: {metrics}")
