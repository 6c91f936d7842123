"""Tailwater's Kafka receiver against a real broker, fed by a real Collector.

`README.md` says what each part shows. `run.sh` installs the tools for this.
"""

import argparse
import contextlib
import importlib
import shutil
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "real"))

from broker import Broker  # noqa: E402
from children import Children, TroubleError, wait_until  # noqa: E402
from compare import Key, Result, compare, spans_of  # noqa: E402
from google.protobuf.message import DecodeError  # noqa: E402
from instance import Instance, at_rest, ledger  # noqa: E402
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (  # noqa: E402
    ExportTraceServiceRequest,
)
from traffic import Topic, Trace  # noqa: E402

# The longest first. They run beside each other; the last ones take the broker away.
PARTS = (
    "scaling",
    "policies",
    "topics",
    "memory",
    "pauses",
    "leaving",
    "records",
    "secure",
    "retention",
    "flow",
)
ALONE = ("outage", "truncation")


@dataclass
class Run:
    """The tools of every part, and its report."""

    told: argparse.Namespace
    children: Children
    broker: Broker
    lines: list[str] = field(default_factory=list)
    passed: int = 0
    failed: int = 0

    def say(self, text: str) -> None:
        self.lines.append(f"      {text}")

    def check(self, name: str, problems: list[str]) -> None:
        self.lines.append(f"{'FAIL' if problems else 'ok  '}  {name}")
        self.lines += [f"        {problem[:1500]}" for problem in problems[:4]]
        if len(problems) > 4:
            self.lines.append(f"        ... and {len(problems) - 4} more")
        self.passed += not problems
        self.failed += bool(problems)

    def instance(self, name: str, topic: str, group: str | None = None, **more: object) -> Instance:
        kafka = {"brokers": [self.broker.address], "topic": topic, "group_id": group or topic}
        own = more.pop("kafka", {})
        return Instance(self.told.tailwater, self.children, name, kafka | own, **more)

    def topic(self, name: str, codec: str = "none", **settings: object) -> Topic:
        return Topic(self.broker.address, name, codec, **settings)

    def wait_for_commits(self, topic: str, group: str, seconds: float = 60) -> None:
        """Until the group has committed the end of every partition."""
        lag = -1

        def is_done() -> bool:
            nonlocal lag
            lag = self.broker.lag(topic, group)
            return lag == 0

        try:
            wait_until(f"commits of {topic}", is_done, seconds)
        except TroubleError:
            raise TroubleError(
                f"{topic}: {lag} records are not committed after {seconds:g} s"
            ) from None

    def whereabouts(self, topic: str, missing: set[Key]) -> str:
        """Where the topic has spans that the backends do not have, if it has them."""
        places: dict[int, list[int]] = {}
        for record in self.broker.records(topic):
            with contextlib.suppress(DecodeError):
                message = ExportTraceServiceRequest.FromString(record.value() or b"")
                if missing & set(spans_of(message)):
                    places.setdefault(record.partition(), []).append(record.offset())
        told = [f"{p}: {len(at)} from {min(at)} to {max(at)}" for p, at in places.items()]
        return f"{len(missing)} spans are missing; records that have them, by partition: {told}"

    def settle(
        self, topic: str, instances: list[Instance], what: str, traces: list[Trace]
    ) -> Result:
        """Waits until all is delivered and committed, and checks every span and the ledgers."""
        self.wait_for_commits(topic, topic)
        running = [one for one in instances if one.is_running()]
        at_rest(running)
        result = compare(traces, [one.sink for one in instances])
        self.say(f"{what}: {result}")
        if result.missing:
            self.say(self.whereabouts(topic, result.missing))
        self.check(f"{what}: kept traces are whole, and nothing else is there", result.problems)
        faults = [fault for one in running for fault in ledger(one)]
        self.check(f"{what}: the ledgers", faults)
        return result


def play(name: str, run: Run) -> Run:
    """One part, whose words come out together."""
    began = time.monotonic()
    try:
        importlib.import_module(f"part_{name}").part(run)
    except Exception as trouble:  # noqa: BLE001  the other parts go on
        logs = sorted(run.children.folder.glob(f"{name}*.log"))
        known = isinstance(trouble, (TroubleError, AssertionError))
        told = str(trouble) if known else traceback.format_exc()
        tails = [f"{path.name}:\n{run.children.tail(path.stem, 8)}" for path in logs]
        run.check(f"{name} ended early", [told, *tails])
    seconds = time.monotonic() - began
    print(f"== {name} ({seconds:.0f} s)", *run.lines, sep="\n", flush=True)
    return run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("tailwater", "collector", "kafka"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    everything = ",".join(PARTS + ALONE)
    parser.add_argument("--parts", default=everything, help=f"of {everything}")
    parser.add_argument("--jobs", type=int, default=3, help="parts that run beside each other")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=int, default=300, help="traces a second under load")
    parser.add_argument("--rounds", type=int, default=1, help="of instances coming and going")
    parser.add_argument("--outage", type=int, default=10, help="seconds without a broker")
    parser.add_argument("--keep", type=Path, help="a folder for the files and logs of the run")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tailwater-kafka-") as temporary:
        folder = told.keep or Path(temporary)
        if told.keep:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        with Children(folder) as children, ThreadPoolExecutor(told.jobs) as pool:
            broker = Broker(told.kafka, children)
            wanted = told.parts.split(",")
            runs = [
                pool.submit(play, name, Run(told, children, broker))
                for name in sorted(set(wanted) - set(ALONE), key=PARTS.index)
            ]
            done = [one.result() for one in runs]
            done += [play(name, Run(told, children, broker)) for name in ALONE if name in wanted]
    passed, failed = sum(one.passed for one in done), sum(one.failed for one in done)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    # The parts import this module, and must not get a second one.
    sys.modules["run"] = sys.modules["__main__"]
    sys.exit(main())
