"""Tailwater as a consumer of a topic, with a backend of its own."""

import json
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path

from children import Children, TroubleError, free_ports, get, wait_until
from metrics import Metrics, parse
from quarter import POLICIES
from sink import Sink

READY_S = 30
CONFIG = """\
shutdown_timeout = "20s"
receiver.grpc.endpoint = "127.0.0.1:{grpc}"
receiver.http.endpoint = "127.0.0.1:{http}"
telemetry.endpoint = "127.0.0.1:{telemetry}"
exporter.otlp.endpoint = "http://127.0.0.1:{sink}"

[sampling]
decision_wait = "{wait_s}s"
decision_wait_after_root_received = "0s"
memory_limit_mib = {memory_mib}
"""


def table(name: str, keys: dict[str, object]) -> str:
    # TOML writes strings, lists, numbers and booleans as JSON does.
    return f"\n[{name}]\n" + "".join(f"{k} = {json.dumps(value)}\n" for k, value in keys.items())


class Instance:
    """One process at a time: it can be started again with the same name and the same ports."""

    def __init__(
        self,
        binary: Path,
        children: Children,
        name: str,
        kafka: dict[str, object] | None,
        *,
        wait_s: float = 3,
        memory_mib: int = 256,
        tables: dict[str, dict[str, object]] | None = None,
        policies: str = POLICIES,
    ) -> None:
        self.binary, self.children, self.name = binary, children, name
        self.sink = Sink()
        grpc, http, self.telemetry = free_ports(3)
        text = CONFIG.format(
            grpc=grpc,
            http=http,
            telemetry=self.telemetry,
            sink=self.sink.port,
            wait_s=wait_s,
            memory_mib=memory_mib,
        )
        if kafka is not None:
            text += table("receiver.kafka", {"group_instance_id": name} | kafka)
        for section, keys in (tables or {}).items():
            text += table(f"receiver.kafka.{section}", keys)
        self.config = children.folder / f"{name}.toml"
        self.config.write_text(text + policies)
        self.grpc_port = grpc
        self.starts = 0

    @property
    def log_name(self) -> str:
        return f"{self.name}-{self.starts}"

    def log(self) -> str:
        return (self.children.folder / f"{self.log_name}.log").read_text(errors="replace")

    def start(self, until_ready: bool = True) -> "Instance":
        self.starts += 1
        command = (self.binary, "run", "--config", self.config)
        self.process = self.children.start(self.log_name, *command)
        # Without partitions, or without a broker, an instance need not be ready; it answers.
        path, wanted = ("/-/ready", 200) if until_ready else ("/metrics", 200)
        wait_until(f"{self.name} is up", lambda: self.get(path)[0] == wanted, READY_S)
        return self

    def get(self, path: str) -> tuple[int, bytes]:
        if self.process.poll() is not None:
            code = self.process.returncode
            raise TroubleError(f"{self.name} ended: {code}\n{self.children.tail(self.log_name)}")
        return get(f"http://127.0.0.1:{self.telemetry}{path}")

    def metrics(self) -> Metrics:
        return parse(self.get("/metrics")[1].decode())

    def is_running(self) -> bool:
        return self.starts > 0 and self.process.poll() is None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(timeout=30)

    def stop(self) -> None:
        """SIGTERM, as an orchestrator sends it."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            raise TroubleError(f"{self.name} does not stop\n{self.log()[-2000:]}") from None
        if code:
            raise TroubleError(f"{self.name}: exit code {code}\n{self.log()[-2000:]}")


def partitions(instances: Iterable[Instance]) -> int:
    return sum(int(one.metrics().total("kafka_partitions")) for one in instances)


def at_rest(instances: list[Instance], seconds: float = 60) -> None:
    """Waits until nothing is buffered or queued."""
    names = ("window_spans", "exporter_queue_spans")

    def is_at_rest() -> bool:
        return all(not one.metrics().total(name) for one in instances for name in names)

    wait_until("nothing is buffered or queued", is_at_rest, seconds)


def ledger(one: Instance) -> list[str]:
    """Both sums of the ledger, with what left with a partition."""
    m = one.metrics()
    out = ("spans_kept_total", "spans_dropped_total", "window_spans", "spans_handed_over_total")
    first = m.total("receiver_accepted_spans_total") - sum(map(m.total, out))
    out = ("exporter_sent_spans_total", "exporter_failed_spans_total", "exporter_queue_spans")
    second = m.total("spans_kept_total") - sum(map(m.total, out))
    wrong = {"accepted": first, "kept": second}
    return [f"{one.name}: {sum_} spans {name} are missing" for name, sum_ in wrong.items() if sum_]
