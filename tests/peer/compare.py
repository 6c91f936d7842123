"""Sends the same bytes to Tailwater and to a real Collector, and compares which traces they keep.

Every difference must be one that README.md lists, and `model.py` must foresee every decision of
both. `run.sh` builds the tools for this.
"""

import argparse
import collections
import http.client
import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "real"))

import collector  # noqa: E402
import tailwater  # noqa: E402
from children import Children, TroubleError, free_ports, get, wait_until  # noqa: E402
from generate import PolicySet, policy_sets  # noqa: E402
from model import RULES, Span, kept  # noqa: E402
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service  # noqa: E402
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue  # noqa: E402
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans  # noqa: E402
from sink import Sink  # noqa: E402

# Tailwater decides this long after a trace's first span. Sending a set takes a few milliseconds.
WAIT_S = 2.0
SENDING_S_MAX = 1.5
RULES_TOGETHER_MAX = 3


def encoded(spans: list[Span]) -> bytes:
    request = service.ExportTraceServiceRequest()
    # Consecutive spans of one resource share it. `repr`, because NaN does not equal itself.
    for _, group in itertools.groupby(spans, lambda span: repr(span.whole_resource())):
        request.resource_spans.append(resource_spans(list(group)))
    return request.SerializeToString()


def resource_spans(spans: list[Span]) -> ResourceSpans:
    made = ResourceSpans()
    made.resource.attributes.extend(attributes(spans[0].whole_resource()))
    scope = made.scope_spans.add()
    for span in spans:
        scope.spans.add(
            trace_id=span.trace_id,
            span_id=b"spanspan",
            name=span.name,
            start_time_unix_nano=span.start,
            end_time_unix_nano=span.end,
            attributes=attributes(span.attributes),
            status={"code": span.status},
            trace_state=span.tracestate,
            flags=span.flags,
        )
    return made


def attributes(pairs: list) -> list[KeyValue]:
    return [KeyValue(key=key, value=any_value(value)) for key, value in pairs]


def any_value(value: object) -> AnyValue:
    match value:
        case None:
            return AnyValue()
        case bool():
            return AnyValue(bool_value=value)
        case int():
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
        case str():
            return AnyValue(string_value=value)
        case bytes():
            return AnyValue(bytes_value=value)
        case list():
            return AnyValue(array_value={"values": [any_value(part) for part in value]})
    raise TypeError(value)


def send(port: int, requests: list[bytes]) -> None:
    """All requests of a set, fast enough for Tailwater to decide after the last."""
    started = time.monotonic()
    post(port, requests)
    if time.monotonic() - started > SENDING_S_MAX:
        raise TroubleError("sending took so long that decisions may have come before the last span")


def post(port: int, requests: list[bytes]) -> None:
    """Requests, one after the other on one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    for request in requests:
        connection.request(
            "POST", "/v1/traces", request, {"Content-Type": "application/x-protobuf"}
        )
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise TroubleError(f"port {port} answers {answer.status}: {body!r}")
        rejected = service.ExportTraceServiceResponse.FromString(body).partial_success
        if rejected.rejected_spans:
            raise TroubleError(f"port {port} rejects spans: {rejected.error_message}")
    connection.close()


def send_all(ports: list[int], bodies: list[list[bytes]]) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(send, ports, bodies))


def listens(port: int) -> bool:
    return get(f"http://127.0.0.1:{port}/")[0] != 0


def stop(process: subprocess.Popen, name: str, children: Children) -> None:
    try:
        code = process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        raise TroubleError(f"{name} does not stop\n{children.tail(name)}") from None
    if code != 0:
        raise TroubleError(f"{name} ended with exit code {code}\n{children.tail(name)}")


def start_collector(
    children: Children, binary: Path, arguments: list, ports: list[int]
) -> subprocess.Popen:
    """A Collector that listens on all ports."""
    process = children.start("collector", binary, *arguments)

    def ready() -> bool:
        if process.poll() is not None:
            raise TroubleError(f"the Collector ended\n{children.tail('collector', 40)}")
        return all(map(listens, ports))

    wait_until("the Collector is ready", ready, 60)
    return process


def by_collector(
    binary: Path, sets: list[PolicySet], bodies: list[list[bytes]], sink: Sink, folder: Path
) -> None:
    with Children(folder) as children:
        ports = free_ports(len(sets))
        config = folder / "collector.yaml"
        told = [(one.policies, port) for one, port in zip(sets, ports, strict=True)]
        # JSON is YAML.
        config.write_text(json.dumps(collector.config(told, sink.port), indent=1))
        process = start_collector(children, binary, ["--config", config], ports)
        send_all(ports, bodies)
        # It decides everything when it stops, as it would have done later.
        process.send_signal(signal.SIGTERM)
        stop(process, "collector", children)


def by_tailwater(
    binary: Path, sets: list[PolicySet], bodies: list[list[bytes]], sink: Sink, folder: Path
) -> None:
    with Children(folder) as children:
        free = iter(free_ports(3 * len(sets)))
        ports_of_all = []
        processes = {}
        for one in sets:
            name = f"tailwater-{one.number}"
            ports = dict(grpc=next(free), http=next(free), telemetry=next(free))
            config = folder / f"{name}.toml"
            tailwater.write_config(config, one.policies, WAIT_S, sink=sink.port, **ports)
            processes[name] = children.start(name, binary, "run", "--config", config)
            ports_of_all.append(ports)

        def ready() -> bool:
            for name, process in processes.items():
                if process.poll() is not None:
                    raise TroubleError(f"{name} ended\n{children.tail(name, 40)}")
            urls = (f"http://127.0.0.1:{ports['telemetry']}/-/ready" for ports in ports_of_all)
            return all(get(url)[0] == 200 for url in urls)

        wait_until("Tailwater is ready", ready, 60)
        send_all([ports["http"] for ports in ports_of_all], bodies)
        # At shutdown a condition that can still turn would not veto, so wait for the regular
        # decision.
        counts = [len(one.traces()) for one in sets]
        try:
            wait_until("all is decided", lambda: not undecided(ports_of_all, counts), 120)
        except TroubleError as error:
            raise TroubleError(f"{error}\n{undecided(ports_of_all, counts)}") from None
        for process in processes.values():
            process.send_signal(signal.SIGTERM)
        for name, process in processes.items():
            stop(process, name, children)


def undecided(ports_of_all: list[dict[str, int]], counts: list[int]) -> list[str]:
    """The processes that have not decided all their traces yet."""
    found = []
    for ports, count in zip(ports_of_all, counts, strict=True):
        text = get(f"http://127.0.0.1:{ports['telemetry']}/metrics")[1].decode()
        decisions = re.findall(r"^tailwater_decisions_total\{[^}]*} (\d+)", text, re.MULTILINE)
        if sum(map(int, decisions)) != count:
            found.append(f"{ports}: {decisions}")
    return found


def spans_by_trace(sink: Sink) -> collections.Counter[bytes]:
    with sink.lock:
        return spans_in(sink.requests)


def spans_in(requests: list[service.ExportTraceServiceRequest]) -> collections.Counter[bytes]:
    """The number of spans of each trace."""
    return collections.Counter(
        span.trace_id
        for request in requests
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    )


def explanation(policies: list[dict], spans: list[Span]) -> tuple[str, ...] | None:
    """The fewest rules under which the Collector's decision follows from the policies."""
    usual = kept(policies, spans, frozenset())
    for count in range(1, RULES_TOGETHER_MAX + 1):
        for rules in itertools.combinations(RULES, count):
            if kept(policies, spans, frozenset(rules)) != usual:
                return rules
    return None


class Tally:
    """The decision about every trace."""

    def __init__(self) -> None:
        self.traces = self.kept = self.differing_sets = self.split_sets = 0
        self.by_rule: collections.Counter[str] = collections.Counter()
        self.problems: list[str] = []

    def compare(self, sets: list[PolicySet], sinks: dict[str, Sink]) -> None:
        received = {name: spans_by_trace(sink) for name, sink in sinks.items()}
        for one in sets:
            differences, kept_before = sum(self.by_rule.values()), self.kept
            for trace_id, spans in one.traces().items():
                seen = {name: counts.pop(trace_id, 0) for name, counts in received.items()}
                self.trace(one, trace_id, spans, seen)
            self.differing_sets += differences != sum(self.by_rule.values())
            self.split_sets += 0 < self.kept - kept_before < len(one.traces())
        for name, rest in received.items():
            if rest:
                self.problems.append(f"{name} exported {len(rest)} traces that were never sent")

    def trace(self, one: PolicySet, trace_id: bytes, spans: list[Span], seen: dict) -> None:
        self.traces += 1
        wanted = {
            "Tailwater": kept(one.policies, spans, frozenset()),
            "the Collector": kept(one.policies, spans, frozenset(RULES)),
        }
        self.kept += wanted["Tailwater"]
        for name, count in seen.items():
            expected = len(spans) if wanted[name] else 0
            if count != expected:
                told = [
                    f"set {one.number}, trace {trace_id.hex()}: {name} exported {count} spans, "
                ]
                told.append(f"not {expected} of {len(spans)}\n  policies {one.policies}\n  ")
                self.problems.append("".join(told) + "\n  ".join(map(str, spans)))
                return
        if wanted["Tailwater"] != wanted["the Collector"]:
            rules = explanation(one.policies, spans)
            if rules is None:
                told = f"set {one.number}, trace {trace_id.hex()}: no few rules explain it"
                self.problems.append(told)
            else:
                self.by_rule[" + ".join(rules)] += 1

    def summary(self, sets: int, seconds: float) -> int:
        differing = sum(self.by_rule.values())
        alike = self.traces - differing - len(self.problems)
        # The traces are the same in every run, so a rule that no trace needs has lost its reason.
        met = {rule for key in self.by_rule for rule in key.split(" + ")}
        unmet = [rule for rule in RULES if rule not in met]
        self.problems += [f"no trace needs the rule {rule}" for rule in unmet]
        for problem in self.problems[:5]:
            print(f"FAIL  {problem}")
        if len(self.problems) > 5:
            print(f"      ... and {len(self.problems) - 5} more")
        print(f"{sets} policy sets, {self.split_sets} of which keep some and drop some")
        print(f"{self.traces} traces, {self.kept} of which Tailwater must keep")
        print(f"{alike} decided alike, {differing} as listed, in {self.differing_sets} sets:")
        for rule, count in self.by_rule.most_common():
            print(f"  {count:6} {rule}")
        print(f"{seconds:.0f} s")
        print(f"{self.traces - len(self.problems)} passed, {len(self.problems)} failed")
        return 1 if self.problems else 0


def check_readme() -> None:
    """The list in the documentation has the rules of the code, each once."""
    listed = re.findall(r"^\| `([a-z-]+)` \|", (HERE / "README.md").read_text(), re.MULTILINE)
    if sorted(listed) != sorted(RULES):
        raise TroubleError(f"README.md lists {sorted(listed)}, model.py {sorted(RULES)}")


def run(arguments: argparse.Namespace) -> int:
    check_readme()
    started = time.monotonic()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    sets = policy_sets(arguments.first, arguments.sets, arguments.seed)
    tally = Tally()
    for first in range(0, len(sets), arguments.batch):
        batch = sets[first : first + arguments.batch]
        folder = arguments.folder / f"{first:04}"
        folder.mkdir(parents=True)
        bodies = [[encoded(spans) for spans in one.requests] for one in batch]
        sinks = {"Tailwater": Sink(), "the Collector": Sink()}
        try:
            by_collector(arguments.collector, batch, bodies, sinks["the Collector"], folder)
            by_tailwater(arguments.tailwater, batch, bodies, sinks["Tailwater"], folder)
            tally.compare(batch, sinks)
        finally:
            for sink in sinks.values():
                sink.stop()
        print(f"{first + len(batch)} sets, {time.monotonic() - started:.0f} s", flush=True)
    return tally.summary(len(sets), time.monotonic() - started)


def arguments_of(description: str | None) -> argparse.ArgumentParser:
    """The arguments that each of these tests has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--tailwater", type=Path, required=True)
    parser.add_argument("--collector", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="what a run writes and logs")
    return parser


def exit_code(run: Callable[[argparse.Namespace], int], parser: argparse.ArgumentParser) -> int:
    """Runs a test. Trouble is printed, and fails it."""
    try:
        return run(parser.parse_args())
    except TroubleError as error:
        print(f"FAIL  {error}")
        return 1


def main() -> int:
    parser = arguments_of(__doc__)
    parser.add_argument("--sets", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="the number of the first set")
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    return exit_code(run, parser)


if __name__ == "__main__":
    sys.exit(main())
