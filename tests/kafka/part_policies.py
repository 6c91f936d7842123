"""Policies with a memory (limits, budgets, rare kinds), reloads and span metrics, read from Kafka."""

import json
import random
import re
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field

from children import wait_until
from compare import spans_of
from instance import Instance, at_rest, ledger, partitions
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from quarter import is_chosen
from run import Run
from traffic import Load, Trace, make_trace, request

TOPIC, PARTITIONS = "policies", 6
WAIT_S = 3
SPANS, RATE = 3, 120
# After this long, the thresholds have settled.
SETTLED_S = 8
SPANS_PER_SECOND = 40
POLICIES = f"""
[span_metrics]
enabled = true

[[policy]]
name = "limited"
type = "string_attribute"
key = "class"
values = ["limited"]
limit = {{ spans_per_second = {SPANS_PER_SECOND} }}

[[policy]]
name = "shared"
type = "budget"
keys = ["route"]
spans_per_second = {SPANS_PER_SECOND}
policies = [{{ type = "string_attribute", key = "class", values = ["shared"] }}]

[[policy]]
name = "first"
type = "rare"
keys = ["route"]
interval = "600s"
policies = [{{ type = "string_attribute", key = "class", values = ["rare"] }}]

[[policy]]
name = "share"
type = "and"
sampling_percentage = PERCENTAGE
policies = [{{ type = "string_attribute", key = "class", values = ["plain"] }}]
"""
CALLS = re.compile(r"^traces_spanmetrics_calls_total\{.*\} (\S+)$", re.MULTILINE)
CLASSES = ("limited", "shared", "rare", "plain")
# So unequal that a budget keeps some kinds whole and others not.
ROUTES = ["/often"] * 16 + ["/sometimes"] * 3 + ["/seldom"]


def policies(percentage: int) -> str:
    return POLICIES.replace("PERCENTAGE", str(percentage))


@dataclass
class Classified:
    """Traces of a load, each of a class and a route that all its spans tell."""

    rng: random.Random
    kinds: dict[bytes, tuple[str, str]] = field(default_factory=dict)
    began: dict[bytes, float] = field(default_factory=dict)

    def mark(self, span: Span) -> Span:
        if span.trace_id not in self.kinds:
            kind = self.rng.choice(CLASSES), self.rng.choice(ROUTES)
            self.kinds[span.trace_id] = kind
            self.began[span.trace_id] = time.time()
        for key, value in zip(("class", "route"), self.kinds[span.trace_id], strict=True):
            if all(pair.key != key for pair in span.attributes):
                span.attributes.add(key=key).value.string_value = value
        return span

    def of(self, name: str) -> set[bytes]:
        return {trace for trace, (kind, _) in self.kinds.items() if kind == name}


@dataclass
class Kept:
    """What backends have of a trace."""

    spans: set[bytes] = field(default_factory=set)
    copies: Counter = field(default_factory=Counter)
    policies: set[str] = field(default_factory=set)
    # The least threshold: of two decisions about it, the one that is likelier to keep it.
    threshold: float = 1.0


def threshold(span: Span) -> float:
    """The share that is dropped of traces like that of the span, by its stamp."""
    for part in span.trace_state.split(","):
        if part.startswith("ot="):
            told = dict(pair.split(":", 1) for pair in part[3:].split(";"))
            return int(told.get("th", "0").ljust(14, "0"), 16) / 2**56
    raise AssertionError(f"{span.trace_id.hex()} has no stamp: {span.trace_state!r}")


def kept(instances: list[Instance]) -> dict[bytes, Kept]:
    found: dict[bytes, Kept] = {}
    for one in instances:
        with one.sink.lock:
            requests = list(one.sink.requests)
        for message in requests:
            for (trace, id_), span in spans_of(message).items():
                entry = found.setdefault(trace, Kept())
                entry.spans.add(id_)
                entry.copies[id_] += 1
                own = {p.key: p.value.string_value for p in span.attributes}
                entry.policies.add(own.get("tailwater.policy", ""))
                entry.threshold = min(entry.threshold, threshold(span))
    return found


def randomness(trace: bytes) -> float:
    return int.from_bytes(trace[-7:], "big") / 2**56


def estimate_faults(name: str, traces: set[bytes], found: dict[bytes, Kept]) -> list[str]:
    """Kept traces, weighted by what their stamps say, stand for all."""
    have = [found[trace] for trace in traces if trace in found]
    weights = [1 / (1 - one.threshold) for one in have]
    deviation = sum(weight * (weight - 1) for weight in weights) ** 0.5
    off = sum(weights) - len(traces)
    told = f"{name}: {len(have)} kept stand for {sum(weights):.0f} of {len(traces)}"
    faults = [] if abs(off) <= 4 * deviation + 1 else [f"{told}, {deviation:.0f} would be usual"]
    wrong = [t for t in traces & found.keys() if randomness(t) < found[t].threshold - 1e-9]
    return faults + [f"{name}: {trace.hex()} lies below its own threshold" for trace in wrong]


def part(run: Run) -> None:
    run.broker.create(TOPIC, PARTITIONS)
    mark = Classified(random.Random(run.told.seed))
    topic = run.topic(TOPIC)

    def send(spans: list[Span]) -> None:
        for span in spans:
            value = request([mark.mark(span)]).SerializeToString()
            topic.put(value, span.trace_id.hex().encode())
        topic.producer.flush(10)

    kafka = {"session_timeout": "4s"}
    instances = [
        run.instance(f"policies-{n}", TOPIC, wait_s=WAIT_S, kafka=kafka, policies=policies(25))
        for n in range(2)
    ]
    for one in instances:
        one.start()
    wait_until("partitions are shared", lambda: all(partitions([o]) for o in instances), 30)
    load = Load(send, RATE, run.told.seed, spans=SPANS)
    load.start()
    time.sleep(SETTLED_S)
    limits_hold(run, instances)
    looked_up(run, instances)
    before_kill = calls(instances)
    check_calls(run, "without a kill", before_kill, None, mark, load)
    reload_at = reload(instances)
    time.sleep(WAIT_S + 3)
    counted = calls([instances[0]])
    doubled = counted_twice(instances[0])
    instances[0].kill()
    time.sleep(1)
    instances[0].start()
    time.sleep(2 * WAIT_S)
    traces = load.finish()
    run.wait_for_commits(TOPIC, TOPIC)
    at_rest(instances)
    check_calls(run, "with a kill", calls(instances) + counted, doubled, mark, load)
    judge(run, mark, traces, kept(instances), reload_at)
    run.check("policies: the ledgers", [fault for one in instances for fault in ledger(one)])
    for one in instances:
        one.stop()
    late_spans(run)


def limits_hold(run: Run, instances: list[Instance]) -> None:
    """Over ten seconds, each instance keeps what its limits say, over all its partitions."""
    seconds, faults = 10, []
    names = ("spans_kept_total", "policy_matches_total")
    rates = [[one.metrics().by(name, "policy") for name in names] for one in instances]
    began = time.monotonic()
    time.sleep(seconds)
    for one, (before, before_matches) in zip(instances, rates, strict=True):
        after, matches = (one.metrics().by(name, "policy") for name in names)
        took = time.monotonic() - began
        for policy in ("limited", "shared"):
            rate = (after.get(policy, 0) - before.get(policy, 0)) / took
            asked = (matches[policy] - before_matches.get(policy, 0)) * SPANS / took
            run.say(f"{one.name}: {policy} keeps {rate:.1f} spans/s of {asked:.1f}")
            # On a busy machine, traces come to their decision in bursts, which a budget keeps less of.
            low = 0.3 * min(asked, SPANS_PER_SECOND)
            # The bucket of a limit holds two seconds of it.
            high = (1.3 if policy == "limited" else 1.15) * SPANS_PER_SECOND
            if not low <= rate <= high:
                faults.append(f"{one.name}: {policy} keeps {rate:.1f} spans/s of {asked:.0f}")
    run.check("limits and budgets hold over all partitions of an instance", faults)


def looked_up(run: Run, instances: list[Instance]) -> None:
    """Somebody looks at an instance that reads from Kafka."""
    one, faults = instances[0], []
    (status,) = [json.loads(one.get("/-/status")[1])]
    if int(status["ledger"]["accepted"]) == 0:
        faults.append(f"the status has an empty ledger: {status['ledger']}")
    with one.sink.lock:
        (trace, _), *_ = spans_of(one.sink.requests[-1])
    address = f"http://127.0.0.1:{one.telemetry}"
    command = (one.binary, "explain", "--address", address, trace.hex())
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    if told.returncode or "kept" not in told.stdout:
        faults.append(f"explain: {told.returncode} {told.stdout}{told.stderr}")
    page = one.get("/")[1].decode()
    if "Kafka" not in page:
        faults.append("the page does not mention Kafka")
    run.check("status, page and explain know what was read", faults)


def calls(instances: list[Instance]) -> float:
    """The calls of span metrics. Of a trace, only its root is a server's span."""
    scrapes = [one.get("/metrics/spans")[1].decode() for one in instances]
    return sum(float(told) for scrape in scrapes for told in CALLS.findall(scrape))


def counted_twice(one: Instance) -> float:
    """The spans above the commit, which the next owner reads and counts again, at most."""
    metrics = one.metrics()
    rate = RATE * partitions([one]) / PARTITIONS
    # What is undecided, what came while that was, and a round of commits.
    return metrics.total("window_traces") + rate * (WAIT_S + 3)


def check_calls(
    run: Run, what: str, counted: float, most: float | None, mark: Classified, load: Load
) -> None:
    roots = sum(1 for trace in load.traces if trace.spans[-1].trace_id in mark.kinds)
    if most is None:
        # The load goes on: its last traces are not there yet.
        faults = [] if 0 < counted <= roots else [f"{counted:.0f} of {roots}"]
        return run.check(f"span metrics {what}: no call is counted twice", faults)
    again = counted - roots
    run.say(f"span metrics {what}: {counted:.0f} calls of {roots}, {again:.0f} of them again")
    faults = [] if 0 <= again <= most else [f"{again:.0f} again, {most:.0f} may be"]
    return run.check(f"span metrics {what}: no call is missing, few are counted again", faults)


def reload(instances: list[Instance]) -> float:
    for one in instances:
        one.config.write_text(one.config.read_text().replace("= 25\n", "= 50\n"))
        one.process.send_signal(signal.SIGHUP)
    for one in instances:
        name = "config_last_reload_success_timestamp_seconds"
        wait_until(
            "the reload", lambda o=one: o.metrics().total(name) > time.time() - 20, 10
        )
    return time.time()


def judge(
    run: Run, mark: Classified, traces: list[Trace], found: dict[bytes, Kept], reload_at: float
) -> None:
    whole = {trace.id: len(trace.spans) for trace in traces}
    parts = [
        f"{mark.kinds[trace][0]} {trace.hex()}: {len(one.spans)} of {whole[trace]} spans"
        for trace, one in found.items()
        if len(one.spans) < whole[trace]
    ]
    run.check("policies: no trace is split by a kill and a reload", parts)
    faults = estimate_faults("limited", mark.of("limited"), found)
    faults += estimate_faults("shared", mark.of("shared"), found)
    run.check("policies: kept traces stand for all, by their stamps", faults)
    routes = Counter(mark.kinds[trace][1] for trace in found if mark.kinds[trace][0] == "rare")
    # Each process has a memory of its own, and there were three.
    faults = [f"{route}: {routes[route]}" for route in set(ROUTES) if not 1 <= routes[route] <= 3]
    run.check("policies: each process keeps the first trace of each kind", faults)
    faults = []
    for trace in mark.of("plain"):
        # Decided by the policies of before or of after; in between by those of either.
        age = mark.began[trace] + WAIT_S - reload_at
        share = [s for s, is_in_force in ((0.25, age < 1), (0.5, age > -10)) if is_in_force]
        expected = {randomness(trace) >= 1 - s for s in share}
        if (trace in found) not in expected:
            faults.append(f"{trace.hex()}, {age:.1f} s after the reload: {trace in found}")
    run.check("policies: a reload decides by the new policies, and loses nothing", faults)


def late_spans(run: Run) -> None:
    """A span that comes after the decision, and after the instance that made it was killed."""
    name = "policies-late"
    run.broker.create(name, 2)
    one = run.instance(name, name, wait_s=WAIT_S, kafka={"session_timeout": "4s"}).start()
    wait_until("it reads", lambda: partitions([one]) == 2, 30)
    rng, topic = random.Random(run.told.seed), run.topic(name)
    traces = []
    for _ in range(400):
        trace = make_trace(rng, 2)
        # An error that comes late would change nothing any more.
        trace.expected = 2 if is_chosen(trace.id) or trace.spans[0].status.code == 2 else 0
        traces.append(trace)

    def put(place: int) -> None:
        for trace in traces:
            topic.put(request([trace.spans[place]]).SerializeToString(), trace.id.hex().encode())
        topic.flush()

    put(0)
    wait_until("all are decided", lambda: one.metrics().total("decisions_total") == 400, 30)
    run.wait_for_commits(name, name)
    one.kill()
    one.start()
    wait_until("it reads again", lambda: partitions([one]) == 2, 30)
    put(1)
    run.wait_for_commits(name, name)
    at_rest([one])
    run.settle(name, [one], "late spans after a kill follow the decision before it", traces)
    late = one.metrics().total("late_spans_total")
    run.check("they are late spans there as well", [] if late == 400 else [f"{late:.0f} of 400"])
    one.stop()
