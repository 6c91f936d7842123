"""Generates policy sets, and traces that hit their boundaries, from a seed.

The vocabulary is small, so that policies often match traces. Traces rarely show an intended
difference between the two samplers: the aim is to find unintended ones.
"""

import random
from dataclasses import dataclass

from collector import normal_form
from model import Span

START = 1_700_000_000_000_000_000
MS = 1_000_000
TRACES = 30
REQUESTS = 3
# Each further conjunction is a further policy in the Collector.
CONJUNCTIONS_MAX = 24

ROUTES = ["/", "/api", "/api/cart", "/health", "Zürich"]
ENVIRONMENTS = ["prod", "test"]
SERVICES = ["shop", "cart", "payment"]
NAMES = ["GET /", "poll", "pay"]
EXPRESSIONS = ["^/api", "health$", "a", "[0-9]", "^/$", "cart|health"]
RARE_EXPRESSIONS = [r"^\w+$", ".*"]
DURATIONS_MS = [1, 10, 100, 500]
NUMBERS = [-5, 1, 100, 200, 500]
TRACESTATES = ["", "vendor=a", "vendor=b", "x=1,vendor=a", "x=1 , vendor=b", "team@v=a,vendor=c"]
RARE_TRACESTATES = [
    "vendor=a,vendor=b",
    "Bad=1,vendor=a",
    "vendor=a,novalue",
    "vendor=b,,",
    "vendor=",
]

LEAVES = [
    "status_code",
    "latency",
    "string_attribute",
    "numeric_attribute",
    "boolean_attribute",
    "span_count",
    "trace_state",
    "trace_flags",
    "span_name",
    "service_name",
    "same_span",
    "always_sample",
]
SPAN_LEAVES = [
    "status_code",
    "string_attribute",
    "numeric_attribute",
    "boolean_attribute",
    "trace_state",
    "trace_flags",
    "span_name",
    "service_name",
]


@dataclass
class PolicySet:
    number: int
    policies: list[dict]
    # Spans in the order in which they are sent, by request.
    requests: list[list[Span]]

    def traces(self) -> dict[bytes, list[Span]]:
        found: dict[bytes, list[Span]] = {}
        for request in self.requests:
            for span in request:
                found.setdefault(span.trace_id, []).append(span)
        return found


def policy_sets(first: int, count: int, seed: int) -> list[PolicySet]:
    numbers = range(first, first + count)
    return [Generator(random.Random(f"{seed}/{n}"), n).policy_set() for n in numbers]


class Generator:
    def __init__(self, rng: random.Random, number: int) -> None:
        self.rng = rng
        self.number = number

    def rarely(self, probability: float = 0.02) -> bool:
        return self.rng.random() < probability

    def some(self, words: list, most: int = 2) -> list:
        return self.rng.sample(words, self.rng.randint(1, min(most, len(words))))

    def policy_set(self) -> PolicySet:
        while True:
            policies = self.policies()
            if len(normal_form(policies)) <= CONJUNCTIONS_MAX:
                break
        for place, policy in enumerate(policies):
            policy["name"] = f"p{place}"
        requests: list[list[Span]] = [[] for _ in range(REQUESTS)]
        for place in range(TRACES):
            trace_id = (
                bytes([7])
                + self.number.to_bytes(3)
                + bytes([place, 1, 2, 3])
                + self.rng.randbytes(8)
            )
            for span in self.trace(trace_id):
                self.rng.choice(requests).append(span)
        for request in requests:
            self.rng.shuffle(request)
            if self.rng.random() < 0.5:
                # As an SDK sends them: spans of one resource together.
                request.sort(key=lambda span: repr(span.whole_resource()))
        return PolicySet(self.number, policies, [request for request in requests if request])

    def policies(self) -> list[dict]:
        # The first policy uses the types in turn, so that none is left out by chance.
        first = self.leaf(LEAVES[self.number % len(LEAVES)])
        shape = self.number // len(LEAVES) % 4
        if shape == 0:
            policies = [first]
        elif shape == 1:
            policies = [{"type": "not", "policy": first}]
        else:
            policies = [
                {"type": self.rng.choice(["and", "or"]), "policies": [first, self.formula(2)]}
            ]
        policies += [self.formula(2) for _ in range(self.rng.randint(0, 2))]
        if self.rng.random() < 0.3:
            parts = [self.formula(1) for _ in range(self.rng.randint(1, 2))]
            policies.insert(self.rng.randint(0, len(policies)), {"type": "drop", "policies": parts})
        return policies

    def formula(self, depth: int) -> dict:
        kind = self.rng.choice(["leaf", "leaf", "leaf", "and", "and", "or", "not"])
        if depth == 0 or kind == "leaf":
            return self.leaf(self.rng.choice(LEAVES[:-1]))
        if kind == "not":
            return {"type": "not", "policy": self.formula(depth - 1)}
        parts = [self.formula(depth - 1) for _ in range(self.rng.randint(2, 3))]
        return {"type": kind, "policies": parts}

    def leaf(self, kind: str) -> dict:
        rng = self.rng
        made = {"type": kind}
        match kind:
            case "status_code":
                made["status_codes"] = self.some(
                    ["OK", "ERROR", "ERROR", "UNSET"][rng.randint(0, 1) :]
                )
            case "latency":
                made["threshold_ms"] = low = rng.choice(DURATIONS_MS)
                if rng.random() < 0.2:
                    made["upper_threshold_ms"] = low * 5
            case "string_attribute":
                made |= self.strings({"http.route": ROUTES, "env": ENVIRONMENTS})
            case "span_name":
                made |= self.strings({None: NAMES})
            case "service_name":
                made |= self.strings({None: SERVICES})
            case "numeric_attribute":
                low, high = sorted(rng.sample(NUMBERS, 2))
                bounds = rng.choice(
                    [{"min_value": low}, {"max_value": high}, {"min_value": low, "max_value": high}]
                )
                if self.rarely(0.05):
                    bounds = {"min_value": 0, "max_value": high} if high > 0 else bounds
                made |= {"key": "n", **bounds, **self.inverted()}
            case "boolean_attribute":
                made |= {"key": "cached", "value": rng.random() < 0.5, **self.inverted()}
            case "span_count":
                made["min_spans"] = low = rng.randint(1, 3)
                if rng.random() < 0.3:
                    made["max_spans"] = rng.randint(low, 4)
            case "trace_state":
                made |= {
                    "key": rng.choice(["vendor", "vendor", "x", "team@v"]),
                    "values": self.some(["a", "b", "1"]),
                }
            case "same_span":
                made["policies"] = [
                    self.leaf(rng.choice(SPAN_LEAVES)) for _ in range(rng.randint(2, 3))
                ]
        return made

    def inverted(self) -> dict:
        return {"invert_match": True} if self.rng.random() < 0.3 else {}

    def strings(self, words: dict) -> dict:
        key = self.rng.choice(list(words))
        made = {"key": key} if key else {}
        if self.rng.random() < 0.3:
            expressions = RARE_EXPRESSIONS if self.rarely(0.25) else EXPRESSIONS
            made |= {"values": self.some(expressions), "enabled_regex_matching": True}
        else:
            made["values"] = self.some(words[key]) + ([""] if self.rarely(0.15) else [])
        return made | self.inverted()

    def trace(self, trace_id: bytes) -> list[Span]:
        rng = self.rng
        count = rng.choice([1, 1, 2, 2, 3, 4, 5])
        spans = [self.span(trace_id) for _ in range(count)]
        length = rng.choice(DURATIONS_MS + [5 * ms for ms in DURATIONS_MS]) * MS + rng.choice(
            [-MS, 0, 0, MS]
        )
        if self.rarely(0.08):
            length += rng.choice([-1, 1])
        length = max(length, 0)
        for span in spans:
            span.start = START + rng.randint(0, length // MS) * MS
            span.end = rng.randint((span.start - START) // MS, length // MS) * MS + START
        spans[0].start = START
        spans[-1].end = START + length
        for span in spans:
            if self.rarely(0.01):
                span.start, span.end = rng.choice(
                    [(0, span.end), (span.start, 0), (span.end, span.start), (0, 0)]
                )
        return spans

    def span(self, trace_id: bytes) -> Span:
        rng = self.rng
        span = Span(trace_id, name=rng.choice(NAMES), service=rng.choice([*SERVICES, ""]))
        span.status = rng.choice([0, 0, 1, 2])
        span.flags = rng.choice([0, 0, 1, 0x100, 0x101])
        tracestates = RARE_TRACESTATES if self.rarely() else TRACESTATES
        span.tracestate = rng.choice(tracestates)
        if rng.random() < 0.6:
            route = "" if self.rarely(0.04) else rng.choice(ROUTES)
            span.attributes.append(("http.route", self.value(route)))
        if rng.random() < 0.5:
            near = rng.choice(NUMBERS) + rng.choice([-1, 0, 0, 1])
            span.attributes.append(("n", self.value(near)))
        if rng.random() < 0.5:
            span.attributes.append(("cached", self.value(rng.random() < 0.5)))
        if rng.random() < 0.5:
            span.resource.append(("env", self.value(rng.choice(ENVIRONMENTS))))
        if rng.random() < 0.1:
            span.resource.append(("n", self.value(rng.choice(NUMBERS))))
        if self.rarely() and span.attributes:
            key = rng.choice(span.attributes)[0]
            span.attributes.append(
                (key, rng.choice([rng.choice(ROUTES), rng.choice(NUMBERS), True]))
            )
        return span

    def value(self, usual: object) -> object:
        if not self.rarely(0.04):
            return usual
        return self.rng.choice(
            ["", "100", 100, 99.5, 100.0, 500.5, True, False, None, b"x", ["/"], float("nan")]
        )
