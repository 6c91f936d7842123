"""Traces that hit the boundaries of a configuration: its keys, values, expressions and bounds.

The words are taken from the configuration itself, whoever wrote it. Attributes have the type that
the policies expect, durations are whole milliseconds and a trace's first span is its longest,
because compare.py covers the intended differences.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from rstr import Rstr

TRACES = 120
START = 1_700_000_000_000_000_000
MS = 1_000_000
SPANS_MAX = 20_000

PATH = re.compile(r'(resource\.|span\.|spanevent\.)?attributes\["([^"]+)"\]')
LITERAL = re.compile(r'"((?:[^"\\]|\\.)*)"')
NUMBER = re.compile(r"(?<![\w.\"-])\d+(?:\.\d+)?(?![\w\"])")


@dataclass
class Vocabulary:
    """The values from which the attributes, names and times of the traces are chosen."""

    span: dict[str, list] = field(default_factory=dict)
    resource: dict[str, list] = field(default_factory=dict)
    event: dict[str, list] = field(default_factory=dict)
    tracestate: dict[str, list] = field(default_factory=dict)
    names: list[str] = field(default_factory=lambda: ["some span"])
    event_names: list[str] = field(default_factory=lambda: ["some event"])
    durations_ms: list[int] = field(default_factory=lambda: [1])
    counts: list[int] = field(default_factory=lambda: [1, 2, 3])


def blocks(policy: Any) -> Iterator[tuple[str, dict]]:
    """Each type and its settings, at any depth."""
    if isinstance(policy, list):
        for part in policy:
            yield from blocks(part)
    if isinstance(policy, dict):
        for key, value in policy.items():
            if isinstance(value, dict):
                yield key, value
            yield from blocks(value)


def vocabulary(policies: list[dict], rng: random.Random) -> Vocabulary:
    made = Vocabulary()
    for kind, settings in blocks(policies):
        match kind:
            case "string_attribute":
                written = [text(value) for value in settings.get("values", [])]
                if settings.get("enabled_regex_matching"):
                    written = matching(written, rng)
                attribute(made, settings["key"], near(written))
            case "numeric_attribute":
                bounds = [settings[k] for k in ("min_value", "max_value") if settings.get(k)]
                attribute(made, settings["key"], [n + d for n in bounds for d in (-1, 0, 1)])
            case "boolean_attribute":
                attribute(made, settings["key"], [True, False])
            case "trace_state":
                values = [*settings["values"], "another"]
                made.tracestate.setdefault(settings["key"], []).extend(values)
            case "latency":
                bounds = [settings.get(k, 0) for k in ("threshold_ms", "upper_threshold_ms")]
                made.durations_ms += [max(0, ms + d) for ms in bounds for d in (-1, 0, 1)]
            case "span_count":
                bounds = [settings.get(k, 0) for k in ("min_spans", "max_spans")]
                counts = [count + d for count in bounds for d in (-1, 0, 1)]
                made.counts += [count for count in counts if 0 < count <= SPANS_MAX]
            case "ottl_condition":
                for condition in settings.get("span", []):
                    ottl(made, condition, made.span, made.names, rng)
                for condition in settings.get("spanevent", []):
                    ottl(made, condition, made.event, made.event_names, rng)
    return made


def attribute(made: Vocabulary, key: str, values: list) -> None:
    """The policies look at resources and at spans."""
    for where in (made.span, made.resource):
        typed(where, key, values)


def typed(where: dict[str, list], key: str, values: list) -> None:
    """An attribute keeps the type that it has first."""
    known = where.setdefault(key, [])
    known += [value for value in values if not known or type(value) is type(known[0])]


def ottl(made: Vocabulary, condition: str, own: dict, names: list[str], rng: random.Random) -> None:
    compared = PATH.sub("", condition)
    literals = [one.encode().decode("unicode_escape") for one in LITERAL.findall(compared)]
    strings = near(matching(literals, rng) if "IsMatch" in condition else literals)
    numbers = [float(one) if "." in one else int(one) for one in NUMBER.findall(compared)]
    made.durations_ms += [
        int(one) // MS + d for one in numbers if one >= MS for d in (-1, 0, 1)
    ]
    values: list = strings or [one + d for one in numbers for d in (-1, 0, 1)]
    if not values and re.search(r"\b(true|false)\b", compared):
        values = [True, False]
    for context, key in PATH.findall(condition):
        typed(made.resource if context == "resource." else own, key, values or ["something"])
    names += strings


def matching(expressions: list[str], rng: random.Random) -> list[str]:
    """Strings that match, and the expressions themselves."""
    sample = Rstr(rng)
    found = list(expressions)
    for expression in expressions:
        found += [sample.xeger(expression) for _ in range(3)]
    return found


def near(strings: list[str]) -> list[str]:
    """The strings, and some that nearly match. Empty ones are an intended difference."""
    changed = [one + "x" for one in strings] + ["x" + one for one in strings]
    return [*strings, *changed, "something else"] if strings else []


def text(value: Any) -> str:
    """A value as the Collector and `tailwater convert` read it where they expect a string."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def any_value(value: Any) -> AnyValue:
    match value:
        case bool():
            return AnyValue(bool_value=value)
        case int():
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
    return AnyValue(string_value=value)


def some(rng: random.Random, words: dict[str, list]) -> list[KeyValue]:
    """Each key with a probability; seldom all of them."""
    return [
        KeyValue(key=key, value=any_value(rng.choice(values)))
        for key, values in words.items()
        if values and rng.random() < 0.4
    ]


def traffic(policies: list[dict], seed: str, place: int) -> bytes:
    """One request with all traces. Only their ids depend on the place."""
    rng = random.Random(seed)
    words = vocabulary(policies, rng)
    request = service.ExportTraceServiceRequest()
    for number in range(TRACES):
        trace_id = place.to_bytes(4, "big") + number.to_bytes(4, "big") + rng.randbytes(8)
        # The counts at the boundaries of a policy come once each, as they may be thousands.
        count = words.counts[number] if number < len(words.counts) else rng.choice([1, 1, 2, 3])
        for span in range(count):
            add_span(rng, request, words, trace_id, span)
    return request.SerializeToString()


def add_span(
    rng: random.Random,
    request: service.ExportTraceServiceRequest,
    words: Vocabulary,
    trace_id: bytes,
    number: int,
) -> None:
    resource = request.resource_spans.add()
    resource.resource.attributes.extend(some(rng, words.resource))
    length = rng.choice(words.durations_ms) if number == 0 else 0
    made = resource.scope_spans.add().spans.add(
        trace_id=trace_id,
        span_id=(number + 1).to_bytes(8, "big"),
        parent_span_id=b"" if number == 0 else b"parentid",
        name=rng.choice(words.names),
        kind=rng.randint(1, 5),
        start_time_unix_nano=START,
        end_time_unix_nano=START + length * MS,
        status={"code": rng.choice([0, 0, 1, 1, 1, 2])},
        trace_state=",".join(
            f"{key}={rng.choice(values)}"
            for key, values in words.tracestate.items()
            if rng.random() < 0.4
        ),
    )
    made.attributes.extend(some(rng, words.span))
    for _ in range(rng.choice([0, 0, 1, 2])):
        event = made.events.add(name=rng.choice(words.event_names))
        event.attributes.extend(some(rng, words.event))
