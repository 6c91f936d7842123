"""The meaning of policies: Tailwater's contract and, with switches set, the Collector's.

A policy is a dict of the keys that a user writes in TOML. Each switch ("rule") is one intended
difference; README.md gives the reason for each. With no switch set the functions here give the
decision that Tailwater must make, with all of them set that of the Collector.
"""

import re
from dataclasses import dataclass, field
from typing import Any

# In the order in which explanations are tried.
RULES = (
    "upper-bound-by-arrival",
    "whole-milliseconds",
    "times-as-they-are",
    "numbers-of-other-types",
    "zero-is-no-bound",
    "booleans-of-other-types",
    "empty-strings",
    "strings-of-other-types",
    "first-duplicate-only",
    "lists-as-a-whole",
    "ascii-classes",
    "tracestate-valid-as-a-whole",
)

Attributes = list[tuple[str, Any]]


@dataclass
class Span:
    trace_id: bytes
    name: str = ""
    service: str = ""
    resource: Attributes = field(default_factory=list)
    attributes: Attributes = field(default_factory=list)
    start: int = 0
    end: int = 0
    status: int = 0
    tracestate: str = ""
    flags: int = 0

    def whole_resource(self) -> Attributes:
        service = [("service.name", self.service)] if self.service else []
        return service + self.resource


def kept(policies: list[dict], spans: list[Span], rules: frozenset[str]) -> bool:
    """Whether the policies keep a trace, its spans in the order of their arrival."""
    vetoes = [p for p in policies if p["type"] == "drop"]
    others = [p for p in policies if p["type"] != "drop"]
    if any(all(holds(part, spans, rules) for part in veto["policies"]) for veto in vetoes):
        return False
    return any(holds(policy, spans, rules) for policy in others)


def holds(policy: dict, spans: list[Span], rules: frozenset[str]) -> bool:
    match policy["type"]:
        case "and":
            return all(holds(part, spans, rules) for part in policy["policies"])
        case "or":
            return any(holds(part, spans, rules) for part in policy["policies"])
        case "not":
            return not holds(policy["policy"], spans, rules)
        case "always_sample":
            return True
        case "latency":
            return latency(policy, spans, rules)
        case "span_count":
            return policy["min_spans"] <= len(spans) <= policy.get("max_spans", len(spans))
        case "same_span":
            # Written for the Collector in its expression language, which compares types as
            # Tailwater does.
            strict = rules & {
                "first-duplicate-only",
                "lists-as-a-whole",
                "ascii-classes",
                "tracestate-valid-as-a-whole",
            }
            return any(
                all(any_span(part, [span], strict) for part in policy["policies"]) for span in spans
            )
        case _:
            return any_span(policy, spans, rules)


def any_span(policy: dict, spans: list[Span], rules: frozenset[str]) -> bool:
    """A condition that any span, or its resource, meets; inverted: that none meets."""
    found = any(meets(policy, span, rules) for span in spans)
    return found != policy.get("invert_match", False)


def meets(policy: dict, span: Span, rules: frozenset[str]) -> bool:
    match policy["type"]:
        case "status_code":
            return span.status in [
                ("UNSET", "OK", "ERROR").index(c) for c in policy["status_codes"]
            ]
        case "trace_flags":
            return span.flags & 1 == 1
        case "trace_state":
            return any(
                key == policy["key"] and value in policy["values"]
                for key, value in members(span.tracestate, rules)
            )
        case "span_name":
            return text_matches(policy, span.name, rules)
        case "service_name":
            return bool(span.service) and text_matches(policy, span.service, rules)
        case "string_attribute":
            # The expression language treats strings as usual; see `holds`.
            test = string_matches
        case "numeric_attribute":
            test = number_matches
        case "boolean_attribute":
            test = boolean_matches
    return any(
        test(policy, value, is_resource, rules)
        for is_resource, attributes in ((True, span.whole_resource()), (False, span.attributes))
        for value in values(attributes, policy["key"], rules)
    )


def values(attributes: Attributes, key: str, rules: frozenset[str]) -> list[Any]:
    found = [value for k, value in attributes if k == key]
    found = found[:1] if "first-duplicate-only" in rules else found
    return found if "lists-as-a-whole" in rules else elements(found)


def elements(values: list[Any]) -> list[Any]:
    """The values, with lists replaced by their elements."""
    parts = (elements(value) if isinstance(value, list) else [value] for value in values)
    return [part for of_value in parts for part in of_value]


def string_matches(policy: dict, value: Any, is_resource: bool, rules: frozenset[str]) -> bool:
    if not isinstance(value, str):
        if not is_resource or "strings-of-other-types" not in rules:
            return False
        value = ""
    skipped = not is_resource or not policy.get("enabled_regex_matching")
    if value == "" and skipped and "empty-strings" in rules:
        return False
    return text_matches(policy, value, rules)


def text_matches(policy: dict, text: str, rules: frozenset[str]) -> bool:
    if policy.get("enabled_regex_matching"):
        flags = re.ASCII if "ascii-classes" in rules else 0
        return any(re.search(expression, text, flags) for expression in policy["values"])
    return text in policy["values"]


def number_matches(policy: dict, value: Any, _: bool, rules: frozenset[str]) -> bool:
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if "numbers-of-other-types" in rules:
        value = value if is_int else 0
    elif not is_int and not isinstance(value, float):
        return False
    low, high = policy.get("min_value"), policy.get("max_value")
    if "zero-is-no-bound" in rules:
        low, high = low or None, high or None
    return (low is None or value >= low) and (high is None or value <= high)


def boolean_matches(policy: dict, value: Any, _: bool, rules: frozenset[str]) -> bool:
    if "booleans-of-other-types" in rules:
        value = value is True
    return value is policy["value"]


def latency(policy: dict, spans: list[Span], rules: frozenset[str]) -> bool:
    low, high = policy["threshold_ms"], policy.get("upper_threshold_ms")
    unit = 1 if "whole-milliseconds" in rules else 1_000_000

    def within(nanos: int) -> bool:
        # Whole milliseconds are cut off towards zero.
        duration = nanos if unit != 1 else abs(nanos) // 1_000_000 * (1 if nanos > 0 else -1)
        return duration > low * unit and (high is None or duration <= high * unit)

    lengths = [duration(spans[: i + 1], rules) for i in range(len(spans))]
    # Without an upper bound the arrival makes a difference only if times are zero.
    by_arrival = "upper-bound-by-arrival" if high is not None else "times-as-they-are"
    return any(map(within, lengths if by_arrival in rules else lengths[-1:]))


def duration(spans: list[Span], rules: frozenset[str]) -> int:
    """From the earliest start to the latest end, in nanoseconds."""
    if "times-as-they-are" in rules:
        start = end = 0
        for span in spans:
            start = span.start if start == 0 or span.start < start else start
            end = span.end if end == 0 or span.end > end else end
        return end - start
    starts = [span.start for span in spans if span.start]
    ends = [max(span.start, span.end) for span in spans if span.end]
    return max(0, max(ends) - min(starts)) if starts and ends else 0


def members(tracestate: str, rules: frozenset[str]) -> list[tuple[str, str]]:
    """The members of a list; with the switch, none at all unless the whole list is valid."""
    written = tracestate.split(",")
    if "tracestate-valid-as-a-whole" not in rules:
        pairs = [member.strip(" \t").split("=", 1) for member in written]
        return [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]
    found: dict[str, str] = {}
    for member in filter(None, written):
        key, equals, value = member.partition("=")
        key, value = key.lstrip(" \t"), value.rstrip(" \t")
        valid = equals and KEY.fullmatch(key) and VALUE.fullmatch(value)
        if not valid or key in found:
            return []
        found[key] = value
    return list(found.items())


KEY = re.compile(r"[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13}")
VALUE = re.compile(r"[ -+\--<>-~]{0,255}[!-+\--<>-~]")
