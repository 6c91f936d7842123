"""The decisions that Tailwater should make, worked out from the documented rules alone.

The policies are those of tailwater.toml: errors, slow (over 500 ms), and a baseline of 10 %.
"""

from dataclasses import dataclass
from typing import Any

POLICIES = ("errors", "slow", "baseline")
SLOW_NS = 500_000_000
RANDOM_MAX = 1 << 56


def threshold(percentage: float) -> int:
    """The threshold of a probability: a trace is kept if its 56 random bits are at or above it."""
    return RANDOM_MAX - round(percentage / 100 * RANDOM_MAX)


BASELINE = threshold(10)


@dataclass
class Decision:
    kept: bool
    policy: str
    threshold: int
    randomness: int


def ot_members(tracestate: str) -> dict[str, str]:
    """The sub-keys of the OpenTelemetry member: `ot=th:8;rv:...` gives {"th": "8", "rv": "..."}."""
    for member in tracestate.split(","):
        key, _, value = member.strip().partition("=")
        if key == "ot":
            return dict(part.split(":", 1) for part in value.split(";"))
    return {}


def other_members(tracestate: str) -> str:
    """The members of other vendors, in their order."""
    members = [member.strip() for member in tracestate.split(",")]
    return ",".join(m for m in members if m and not m.startswith("ot="))


def randomness(trace_id: str, spans: list[dict[str, Any]]) -> int:
    """The lowest explicit `rv` in the trace, else the low 56 bits of the trace id."""
    explicit = [ot_members(span["tracestate"]).get("rv") for span in spans]
    return min((int(rv, 16) for rv in explicit if rv), default=int(trace_id[-14:], 16))


def decide(trace_id: str, spans: list[dict[str, Any]]) -> Decision:
    """The decision over the spans that arrived inside the window."""
    proposed = {"baseline": BASELINE}
    if any(span["status"]["code"] == "ERROR" for span in spans):
        proposed["errors"] = 0
    if max(int(s["end"]) for s in spans) - min(int(s["start"]) for s in spans) > SLOW_NS:
        proposed["slow"] = 0
    # The lowest threshold gets the credit, on a tie the first in the file; min() takes the first
    # too.
    policy = min((p for p in POLICIES if p in proposed), key=lambda p: proposed[p])
    random = randomness(trace_id, spans)
    return Decision(random >= proposed[policy], policy, proposed[policy], random)


def hex_threshold(value: int) -> str:
    """The form of `ot=th`: 14 hex digits without trailing zeros, but at least one digit."""
    return f"{value:014x}".rstrip("0") or "0"


def parse_threshold(digits: str) -> int:
    return int(digits.ljust(14, "0"), 16)


def stamp(decision: Decision, tracestate: str) -> str:
    """The `th` that a kept span leaves with.

    Never lower than the one it came with, unless that one cannot be true.
    """
    incoming = parse_threshold(ot_members(tracestate).get("th", "0"))
    consistent = incoming if incoming <= decision.randomness else 0
    return hex_threshold(max(decision.threshold, consistent))
