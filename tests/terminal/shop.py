"""A backend that takes everything, an instance of Tailwater before it, and a small shop that sends traces."""

import http.client
import http.server
import json
import pathlib
import random
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request

POLICIES = """\
[[policy]]
name = "errors"
type = "status_code"
status_codes = ["ERROR"]

[[policy]]
name = "slow"
type = "latency"
threshold_ms = 500

[[policy]]
name = "checkouts"
type = "span_name"
values = ["POST /checkout"]
shadow = true

[[policy]]
name = "baseline"
type = "probabilistic"
sampling_percentage = 10
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Sink(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class Shop:
    """Everything that the commands need, on ports of its own."""

    def __init__(self, binary, folder):
        self.binary = binary
        self.folder = pathlib.Path(folder)
        self.sink = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sink)
        self.sink.daemon_threads = True
        threading.Thread(target=self.sink.serve_forever, daemon=True).start()
        self.grpc, self.http, self.telemetry = free_port(), free_port(), free_port()
        self.address = f"http://127.0.0.1:{self.telemetry}"
        self.policies = self.folder / "policies.toml"
        self.process = None
        self.is_over = threading.Event()
        # Ids of traces with an error, the newest last.
        self.failed = []

    def configure(self, may_change):
        value = str(may_change).lower()
        (self.folder / "tailwater.toml").write_text(f"""\
[receiver.grpc]
endpoint = "127.0.0.1:{self.grpc}"
[receiver.http]
endpoint = "127.0.0.1:{self.http}"
[sampling]
policy_files = ["policies.toml"]
decision_wait = "2s"
decision_wait_after_root_received = "500ms"
[exporter.otlp]
endpoint = "http://127.0.0.1:{self.sink.server_port}"
protocol = "http/protobuf"
[telemetry]
endpoint = "127.0.0.1:{self.telemetry}"
enable_lifecycle = {value}
enable_recording = {value}
""")

    def start(self):
        log = open(self.folder / "tailwater.log", "ab")
        self.process = subprocess.Popen(
            [self.binary, "run", "--config", "tailwater.toml"], cwd=self.folder, stderr=log)
        for _ in range(200):
            try:
                with urllib.request.urlopen(f"{self.address}/-/ready", timeout=1) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                pass
            assert self.process.poll() is None, "the instance ended; see tailwater.log"
            time.sleep(0.1)
        raise AssertionError("the instance is not ready after 20 s")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=30) == 0, "the instance lost spans; see tailwater.log"

    def send_traffic(self):
        threading.Thread(target=self._traffic, daemon=True).start()

    def end(self):
        self.is_over.set()
        if self.process and self.process.poll() is None:
            self.process.kill()

    def _traffic(self):
        chance = random.Random(7)
        while not self.is_over.wait(0.1):
            traces = [self._trace(chance) for _ in range(10)]
            body = json.dumps({"resourceSpans": [entry for trace in traces for entry in trace[1]]})
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=5)
                connection.request("POST", "/v1/traces", body, {"content-type": "application/json"})
                connection.getresponse().read()
                connection.close()
            except OSError:
                continue
            self.failed += [trace_id for trace_id, _, has_failed in traces if has_failed]

    def is_decided(self, trace_id):
        """Whether a trace was kept or dropped."""
        try:
            url = f"{self.address}/-/decisions/{trace_id}"
            with urllib.request.urlopen(url, timeout=5) as answer:
                return json.load(answer)["decision"] != "pending"
        except urllib.error.HTTPError:
            return False

    def _trace(self, chance):
        """Its id, its spans in two services, and whether one of them has an error."""
        trace_id = f"{chance.getrandbits(128):032x}"
        has_failed, is_slow = chance.random() < 0.04, chance.random() < 0.05
        lasts = (chance.randint(600, 900) if is_slow else chance.randint(5, 60)) * 1_000_000
        start = time.time_ns() - lasts
        root = f"{chance.getrandbits(64):016x}"

        def span(name, parent, part):
            return {
                "traceId": trace_id, "spanId": parent and f"{chance.getrandbits(64):016x}" or root,
                "parentSpanId": parent, "name": name, "kind": 2,
                "startTimeUnixNano": str(start), "endTimeUnixNano": str(start + int(lasts * part)),
                "status": {"code": 2 if has_failed and part < 1 else 0},
            }

        def service(name, spans):
            attributes = [{"key": "service.name", "value": {"stringValue": name}}]
            return {"resource": {"attributes": attributes}, "scopeSpans": [{"spans": spans}]}

        route = chance.choice(["GET /cart", "GET /products", "POST /checkout"])
        entries = [
            service("frontend", [span(route, "", 1)]),
            service("orders", [span("reserve", root, 0.5), span("charge", root, 0.7)]),
        ]
        return trace_id, entries, has_failed
