"""The parts that every run needs: a report, Tailwater itself, and the two senders."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from children import Children, TroubleError, free_ports, get, wait_until
from metrics import Metrics, parse

HERE = Path(__file__).resolve().parent
SHUTDOWN_S = 10  # shutdown_timeout in tailwater.toml


class Report:
    """Prints each check with its first faults, and the count at the end."""

    def __init__(self) -> None:
        self.passed = self.failed = 0

    def check(self, name: str, problems: list[str]) -> None:
        print(f"{'FAIL' if problems else 'ok  '}  {name}", flush=True)
        for problem in problems[:5]:
            print(f"        {problem[:1000]}")
        if len(problems) > 5:
            print(f"        ... and {len(problems) - 5} more")
        self.passed += not problems
        self.failed += bool(problems)

    def summary(self) -> int:
        print(f"{self.passed} passed, {self.failed} failed")
        return 1 if self.failed else 0


class Tailwater:
    """The service under test, with a free port for each listener."""

    def __init__(
        self,
        binary: Path,
        config: Path,
        sink_port: int,
        children: Children,
        style: str = "tempo",
    ) -> None:
        self.grpc_port, self.http_port, self.admin_port = free_ports(3)
        self.process = children.start(
            "tailwater" if style == "tempo" else f"tailwater-{style}",
            binary,
            "run",
            "--config",
            config,
            SHOP_GRPC_PORT=self.grpc_port,
            SHOP_HTTP_PORT=self.http_port,
            SHOP_SINK_PORT=sink_port,
            SHOP_STYLE=style,
            SHOP_TELEMETRY_PORT=self.admin_port,
        )

    def get(self, path: str) -> tuple[int, bytes]:
        return get(f"http://127.0.0.1:{self.admin_port}{path}")

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            if self.process.poll() is not None:
                raise TroubleError(f"tailwater ended with exit code {self.process.returncode}")
            return self.get("/-/ready")[0] == 200

        wait_until("tailwater is ready", ready, 15)
        self.before = self.metrics()

    def metrics(self) -> Metrics:
        return parse(self.get("/metrics")[1].decode())

    def wait_until_at_rest(self, spans: int) -> Metrics:
        """The counters once everything that was sent has been decided and delivered."""
        names = ("window_spans", "window_traces", "exporter_queue_spans")

        def at_rest() -> bool:
            m = self.metrics()
            waiting = sum(m.total(name) for name in names)
            return m.total("receiver_accepted_spans_total") >= spans and not waiting

        # If it never comes to rest, the checks of the ledger say more than a time-out would.
        with contextlib.suppress(TroubleError):
            wait_until("tailwater is at rest", at_rest, 20)
        return self.metrics()

    def look_up(self, trace_id: str) -> dict[str, Any]:
        status, body = self.get(f"/-/decisions/{trace_id}")
        if status == 0:
            raise TroubleError("tailwater does not answer any more")
        return json.loads(body) if status == 200 else {"status": status}

    def stop(self) -> list[str]:
        """End it as an init system would; return what went wrong."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout=SHUTDOWN_S)
        except subprocess.TimeoutExpired:
            return [f"it still runs after {SHUTDOWN_S} s"]
        return [f"exit code is {code}"] if code else []


class Senders:
    """The two halves of the shop, which play the plan at the same time, each with its SDK."""

    def __init__(
        self, plan: dict[str, Any], node_sender: Path, tailwater: Tailwater, children: Children
    ) -> None:
        self.children, self.plan, folder = children, plan, children.folder
        self.outputs = {name: folder / f"{name}.json" for name in ("python", "node")}
        plan_file, node_port = folder / "plan.json", folder / "node.port"
        plan_file.write_text(json.dumps(plan))
        # From another run, whose Node shop no longer runs.
        node_port.unlink(missing_ok=True)
        endpoint, http = (f"127.0.0.1:{p}" for p in (tailwater.grpc_port, tailwater.http_port))
        common = ("--plan", plan_file, "--endpoint", endpoint, "--node-port", node_port)
        python, node = (("--sent", output, *common) for output in self.outputs.values())
        self.processes = {
            "python": children.start("python", sys.executable, HERE / "send.py", *python),
            "node": children.start("node", "node", node_sender, "--http-endpoint", http, *node),
        }

    def wait(self) -> list[dict[str, Any]]:
        """The record that each sender wrote."""
        give_up = time.monotonic() + 60
        while any(sender.poll() is None for sender in self.processes.values()):
            for name, sender in self.processes.items():
                if sender.poll() or time.monotonic() > give_up:
                    said = self.children.tail(name)
                    raise TroubleError(f"the {name} sender's exit code is {sender.poll()}:\n{said}")
            time.sleep(0.05)
        return [json.loads(output.read_text()) for output in self.outputs.values()]
