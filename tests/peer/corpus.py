"""Configurations of other people, and what `tailwater convert` makes of them, decide alike.

Each `tail_sampling` in the files of a folder is converted. What both sides can express runs in a
real Collector and, converted, in Tailwater: the configuration as a whole, and each of its policies
by itself, so that no policy hides what another decides. Both get the same traces, made from the
keys, values and bounds of the configuration, and must keep the same. What the Collector refuses
must be refused by `tailwater convert` as well, or have a note that says so.

Chance and rates are made certain: percentages become 100 and rates are never reached. A policy
that is nothing but a percentage below 100 or a rate is left out of the whole, which it would keep.
Values that are not in quotes get them.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "real"))

import yaml  # noqa: E402
from children import Children, TroubleError  # noqa: E402
from compare import arguments_of, exit_code, spans_by_trace  # noqa: E402
from convert import by_collector, by_tailwater, start_with  # noqa: E402
from sink import Sink  # noqa: E402
from vocabulary import TRACES, text, traffic  # noqa: E402

# More than the traffic of a run, however small the share that a part of a `composite` gets.
RATE = 1_000_000_000
# How long and how much is buffered, which decides nothing here.
WINDOW = {
    "decision_wait",
    "decision_cache",
    "drop_pending_traces_on_shutdown",
    "expected_new_traces_per_sec",
    "num_traces",
}
# Tailwater runs once for each processor.
BATCH = 40
ERROR = re.compile(r"^\S+?:(\d+):\d+: error: (.*)$", re.MULTILINE)


@dataclass
class Processor:
    """One set of policies to compare, and what became of it."""

    what: str
    file: Path
    name: str
    body: bytes
    place: int
    kept: int = 0
    differing: int = 0


@dataclass
class Source:
    """A `tail_sampling` in a file."""

    file: Path
    key: str
    settings: dict
    errors: list[tuple[str, str]] = field(default_factory=list)
    # `tailwater convert` says that the Collector refuses something.
    warned: bool = False
    # Why the Collector refuses it as it is written; nothing if it takes it.
    refusal: str = ""
    processors: list[Processor] = field(default_factory=list)

    def title(self) -> str:
        return f"{self.file.stem} {self.key.removeprefix('tail_sampling').lstrip('/')}".strip()


def sources(folder: Path) -> list[Source]:
    found = []
    for file in sorted(folder.glob("*.yaml")):
        for document in yaml.safe_load_all(file.read_text()):
            found += [Source(file, *one) for one in processors_in(document)]
    if not found:
        raise TroubleError(f"no tail_sampling in {folder}/*.yaml")
    return found


def processors_in(value: Any) -> Iterator[tuple[str, dict]]:
    if isinstance(value, dict):
        for key, part in value.items():
            if str(key).split("/")[0] == "tail_sampling" and isinstance(part, dict):
                yield key, part
            else:
                yield from processors_in(part)


def convert(binary: Path, file: Path, key: str) -> subprocess.CompletedProcess:
    command = [binary, "convert", "--processor", key, file]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def certain(policy: Any) -> Any:
    """A policy in which nothing is left to chance."""
    if isinstance(policy, list):
        return [certain(part) for part in policy]
    if not isinstance(policy, dict):
        return policy
    made = {key: certain(value) for key, value in policy.items()}
    made |= {"values": [text(one) for one in made["values"]]} if "values" in made else {}
    made |= {"sampling_percentage": 100} if "sampling_percentage" in made else {}
    for key in ("spans_per_second", "bytes_per_second", "max_total_spans_per_second"):
        made |= {key: RATE} if key in made else {}
    made |= {"burst_capacity": 2 * RATE} if "burst_capacity" in made else {}
    return made


def is_chance(policy: dict) -> bool:
    kind = policy.get("type")
    if kind == "probabilistic":
        percentage = (policy.get(kind) or {}).get("sampling_percentage", 0)
        return not isinstance(percentage, int | float) or percentage < 100
    return kind in ("rate_limiting", "bytes_limiting")


def sets_of(policies: list[dict]) -> list[tuple[str, list[dict]]]:
    """The whole, and each policy by itself unless it is the whole."""
    policies = [policy for policy in policies if isinstance(policy, dict)]
    whole = [certain(policy) for policy in policies if not is_chance(policy)]
    found = [("whole", whole)] if whole else []
    for place, policy in enumerate(policies if len(policies) > 1 or not whole else []):
        alone = [certain(policy)]
        if policy.get("type") == "drop":
            alone.append({"name": "all", "type": "always_sample"})
        found.append((f"policy {place + 1}", alone))
    return found


def refusal(start: Callable[[], Any]) -> str:
    """Why the Collector does not run; nothing if it does."""
    try:
        start()
    except TroubleError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        if not lines[0].startswith("the Collector ended"):
            raise
        return lines[-1]
    return ""


class Corpus:
    """The configurations of a folder, in both."""

    def __init__(self, told: argparse.Namespace) -> None:
        self.told = told
        self.sources = sources(told.configs)
        self.place = 0
        self.problems: list[str] = []

    def convert(self, source: Source) -> None:
        """Converts the file as it is written, and writes what can be compared."""
        done = convert(self.told.tailwater, source.file, source.key)
        source.errors = ERROR.findall(done.stderr)
        source.warned = "which the Collector refuses" in done.stderr
        if (done.returncode == 0) == bool(source.errors):
            self.problems.append(f"{source.title()}: exit code {done.returncode}\n{done.stderr}")
        same = self.write(source.settings, source.key)
        again = convert(self.told.tailwater, same, source.key)
        if tomllib.loads(done.stdout) != tomllib.loads(again.stdout):
            self.problems.append(f"{source.title()}: as JSON it is converted to something else")
        rest = {key: part for key, part in source.settings.items() if key not in WINDOW}
        for what, policies in sets_of(source.settings.get("policies", [])):
            name = f"tail_sampling/{self.place}"
            window = {"decision_wait": "1s", "num_traces": 100_000}
            file = self.write({**window, **rest, "policies": policies}, name)
            if convert(self.told.tailwater, file, name).returncode == 0:
                body = traffic(policies, source.title(), self.place)
                source.processors.append(Processor(what, file, name, body, self.place))

    def write(self, settings: dict, name: str) -> Path:
        file = self.told.folder / f"{self.place}.yaml"
        self.place += 1
        # JSON is YAML.
        file.write_text(json.dumps({"processors": {name: settings}}, indent=1))
        return file

    def by_collector(self, source: Source, sink: Sink) -> None:
        folder = self.told.folder / f"collector-{self.sources.index(source)}"
        folder.mkdir()
        name = "tail_sampling/as-written"
        written = (self.write(source.settings, name), name)
        with Children(folder) as children:
            source.refusal = refusal(
                lambda: start_with(children, self.told.collector, [written], sink)
            )
        if source.refusal and not source.errors and not source.warned:
            self.problems.append(f"{source.title()}: the Collector says {source.refusal}")
        if not source.processors:
            return
        found = [(one.file, one.name) for one in source.processors]
        bodies = [[one.body] for one in source.processors]
        refused = refusal(
            lambda: by_collector(self.told.collector, found, bodies, sink, folder)
        )
        if refused:
            source.processors.clear()
            if not source.refusal:
                self.problems.append(f"{source.title()}: in parts, the Collector says {refused}")

    def run(self) -> None:
        theirs, ours = Sink(), Sink()
        try:
            for source in self.sources:
                self.convert(source)
                self.by_collector(source, theirs)
            compared = [one for source in self.sources for one in source.processors]
            for first in range(0, len(compared), BATCH):
                self.by_tailwater(compared[first : first + BATCH], ours, first)
            self.compare(compared, theirs, ours)
        finally:
            theirs.stop()
            ours.stop()

    def by_tailwater(self, batch: list[Processor], sink: Sink, first: int) -> None:
        folder = self.told.folder / f"tailwater-{first}"
        folder.mkdir()
        found = [(one.file, one.name) for one in batch]
        bodies = [[one.body] for one in batch]
        by_tailwater(self.told.tailwater, found, bodies, sink, folder, TRACES)

    def compare(self, compared: list[Processor], theirs: Sink, ours: Sink) -> None:
        kept: dict[int, list[dict]] = {one.place: [{}, {}] for one in compared}
        for side, sink in enumerate((theirs, ours)):
            for trace_id, spans in spans_by_trace(sink).items():
                kept[int.from_bytes(trace_id[:4], "big")][side][trace_id] = spans
        for one in compared:
            there, here = kept[one.place]
            one.kept = len(there)
            differing = {t for t in here.keys() | there.keys() if here.get(t) != there.get(t)}
            one.differing = len(differing)
            if differing:
                told = f"{one.file.name} ({one.what}): {len(differing)} of {TRACES} traces differ"
                self.problems.append(f"{told}, such as {min(differing).hex()}")

    def report(self) -> int:
        print("| configuration | refused at line | the Collector | sets | kept | differ |")
        print("|---|---|---|---|---|---|")
        for source in self.sources:
            whole = [one for one in source.processors if one.what == "whole"]
            kept = str(whole[0].kept) if whole else "–"
            lines = "; ".join(f"{line}: {reason}" for line, reason in source.errors)
            sets = len(source.processors)
            differing = sum(one.differing for one in source.processors)
            print(
                f"| {source.title()} | {lines or 'whole'} | {source.refusal or 'takes it'} "
                f"| {sets} | {kept} | {differing} |"
            )
        self.totals()
        for problem in self.problems:
            print(f"FAIL  {problem}")
        return 1 if self.problems else 0

    def totals(self) -> None:
        whole = [one for one in self.sources if not one.errors]
        compared = [one for source in self.sources for one in source.processors]
        wholes = [one for one in compared if one.what == "whole"]
        telling = [one for one in compared if 0 < one.kept < TRACES]
        equal = [one for one in compared if not one.differing]
        partly = [one for one in self.sources if one.errors]
        also = [one for one in partly if one.refusal]
        print(f"{len(self.sources)} configurations, {len(whole)} converted whole")
        print(f"{len(partly)} refused at some lines, {len(also)} by the Collector too")
        print(f"{len(compared)} sets of {TRACES} traces compared, {len(wholes)} of them whole")
        print(f"{len(telling)} keep some and drop some; {len(equal)} are equal")


def run(told: argparse.Namespace) -> int:
    shutil.rmtree(told.folder, ignore_errors=True)
    told.folder.mkdir(parents=True)
    corpus = Corpus(told)
    corpus.run()
    return corpus.report()


def main() -> int:
    parser = arguments_of(__doc__)
    parser.add_argument("--configs", type=Path, required=True, help="a folder of *.yaml")
    return exit_code(run, parser)


if __name__ == "__main__":
    sys.exit(main())
