"""Every shipped policy file under a small shop's traffic from both SDKs.

Each file gets a `tailwater run` of its own, with traces of each kind that the file tells apart.
An additional file runs beside the default policies. The expected decision follows from the kind's
policy and percentage and from the trace id's randomness alone.
"""

import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from children import Children, TroubleError
from decision import RANDOM_MAX, threshold
from running import HERE, Report, Senders, Tailwater
from shop import MS, SEED, fail, planned, service
from sink import Sink
from values import typed_attributes

POLICIES = HERE.parent.parent / "policies"
SDK_TRACES = 6  # of each kind and language, with ids that the SDK draws
RANDOMNESS = (RANDOM_MAX - 5, 5)  # two more: kept at any percentage, kept only at 100


@dataclass
class Kind:
    """Traces of one kind, and their expected decision; a veto has no percentage."""

    policy: str
    percentage: float | None
    ms: int = 20
    fails: bool = False
    services: tuple[str, str] = ("gateway", "inventory")
    attributes: dict[str, Any] = field(default_factory=dict)
    thrown: str | None = None  # the type of an exception that the child records, and survives
    needs_root: bool = False  # the policy matches only where the root arrives

    def decision(self, trace_id: str) -> tuple[str, bool]:
        """The policy that is credited, and whether the trace is kept."""
        number = int(trace_id[-14:], 16)
        policy, percentage = self.policy, self.percentage
        # The first span of a trace that came from elsewhere has a parent.
        if self.needs_root and number in RANDOMNESS:
            policy, percentage = "baseline", 10
        return policy, percentage is not None and number >= threshold(percentage)


ERROR = Kind("errors", 100, fails=True)
POSTGRES = {"db.system.name": "postgresql"}


def route(path: str) -> dict[str, str]:
    return {"http.route": path}


DEFAULT = {
    "plain": Kind("baseline", 10),
    "error": ERROR,
    "slow": Kind("slow", 100, ms=501),
    "almost slow": Kind("baseline", 10, ms=499),
}

COMPLETE = {
    "default.toml": DEFAULT,
    "fair-budget.toml": {
        "plain": Kind("fair", 100),
        "error": ERROR,
    },
    "errors-and-slow.toml": {
        "plain": Kind("baseline", 5),
        "error": ERROR,
        "slow": Kind("slow", 100, ms=2001),
        "almost slow": Kind("baseline", 5, ms=1999),
    },
    "shop.toml": {
        "plain": Kind("baseline", 10),
        "error": ERROR,
        "slow": Kind("slow", 100, ms=1001),
        "checkout": Kind("checkout", 100, attributes=route("/api/checkout")),
    },
    "enterprise-customers.toml": {
        "enterprise": Kind("enterprise", 100, attributes={"customer.plan": "enterprise"}),
        "free": Kind("baseline", 5, attributes={"customer.plan": "free"}),
        "error": ERROR,
    },
    "critical-services.toml": {
        "critical": Kind("critical", 50, services=("gateway", "payment")),
        "critical and analytics": Kind("critical", 50, services=("analytics", "checkout")),
        "ordinary": Kind("ordinary", 10),
        "ordinary and logging": Kind("ordinary", 10, services=("gateway", "logging")),
        "background": Kind("background", 1, services=("logging", "analytics")),
        "error": Kind("errors", 100, fails=True, services=("logging", "analytics")),
    },
    "noisy-endpoint.toml": {
        "noisy": Kind("noisy", 1, attributes=route("/api/poll")),
        "noisy error": Kind("errors", 100, fails=True, attributes=route("/api/poll")),
        "plain": Kind("baseline", 10, attributes=route("/api/products")),
        "slow": Kind("slow", 100, ms=501),
    },
    # The tenant stays within its burst: decisions beyond it do not follow from ids alone.
    "rate-limited-tenant.toml": {
        "tenant": Kind("limited-tenant", 100, attributes={"tenant.id": "acme"}),
        "tenant's error": Kind("limited-tenant", 100, fails=True, attributes={"tenant.id": "acme"}),
        "other": Kind("baseline", 10, attributes={"tenant.id": "other"}),
        "error": ERROR,
    },
}

ADDITIONS = {
    "business-routes.toml": {
        "checkout": Kind("business-routes", 100, attributes=route("/api/checkout/{id}")),
        "similar": Kind("baseline", 10, attributes=route("/api/checkouts")),
    },
    "force-sample.toml": {
        "forced": Kind("force-sample", 100, attributes={"force_sample": True}),
        "forced by text": Kind("force-sample", 100, attributes={"force_sample": "true"}),
        "by priority": Kind("force-sample", 100, attributes={"sampling.priority": 1}),
        "not forced": Kind("baseline", 10, attributes={"force_sample": False}),
    },
    "health-checks.toml": {
        "probe": Kind("health-checks", None, attributes=route("/healthz")),
        "failing probe": Kind("health-checks", None, fails=True, attributes=route("/readyz")),
        "kubelet": Kind(
            "health-checks", None, attributes={"user_agent.original": "kube-probe/1.34"}
        ),
    },
    "incident.toml": {
        "of the service": Kind("incident", 100, services=("gateway", "payment")),
    },
    "rehearse-drop.toml": {
        "nothing polls": Kind("baseline", 10),
    },
    "slow-database-calls.toml": {
        # The child takes four fifths of the time.
        "slow call": Kind("slow-database-call", 100, ms=150, attributes=POSTGRES),
        "fast call": Kind("baseline", 10, ms=120, attributes=POSTGRES),
        "no call": Kind("baseline", 10, ms=150),
    },
    "slow-requests.toml": {
        "slow request": Kind("slow-request", 100, ms=301, needs_root=True),
        "fast request": Kind("baseline", 10, ms=299),
        "almost slow": Kind("slow-request", 100, ms=499, needs_root=True),
    },
    "timeouts.toml": {
        "timeout": Kind("timeouts", 100, thrown="ReadTimeoutError"),
        "other": Kind("baseline", 10, thrown="ValueError"),
    },
}


def runs() -> dict[tuple[str, ...], dict[str, Kind]]:
    """The files of each run and its kinds of traces."""
    complete = {(file,): kinds for file, kinds in COMPLETE.items()}
    return complete | {
        ("default.toml", file): DEFAULT | kinds for file, kinds in ADDITIONS.items()
    }


def plan(kinds: dict[str, Kind]) -> dict[str, Any]:
    """The plan of both senders, in the form of `shop.plan`."""
    services = sorted({name for kind in kinds.values() for name in kind.services})
    rng = random.Random(f"{SEED} cookbook")
    base_ns = time.time_ns() - 10**10
    rounds = {
        language: [
            {
                # Each service exports once, all within the second that is left after a root.
                "waves": [services],
                "traces": [
                    trace(name, kind, randomness, base_ns, rng)
                    for name, kind in kinds.items()
                    for randomness in (None,) * SDK_TRACES + RANDOMNESS
                ],
            }
        ]
        for language in ("python", "node")
    }
    return {
        "seed": SEED,
        "services": {name: service(name) for name in services},
        "late_services": [],
        "rounds": rounds,
        "calls": [],
    }


def trace(
    name: str, kind: Kind, randomness: int | None, base_ns: int, rng: random.Random
) -> dict[str, Any]:
    """A root and its child, which has everything that policies look at."""
    start, (outer, inner) = base_ns + rng.randrange(1000) * MS, kind.services
    spans = [
        planned((outer, "GET /", "SERVER", None, 0.0, 1.0), start, kind.ms * MS),
        planned((inner, "call", "CLIENT", 0, 0.1, 0.9), start, kind.ms * MS),
    ]
    spans[1]["attributes"] = typed_attributes(kind.attributes)
    if kind.fails:
        fail(spans[1], rng)
    if kind.thrown:
        thrown = typed_attributes({"exception.type": kind.thrown})
        spans[1]["events"].append({"name": "exception", "at": spans[1]["end"], "attributes": thrown})
    incoming = None
    if randomness is not None:
        incoming = {
            "trace_id": f"{rng.getrandbits(72):018x}{randomness:014x}",
            "span_id": f"{rng.getrandbits(64):016x}",
            "tracestate": "",
        }
    return {"kind": name, "incoming": incoming, "spans": spans}


def config(files: tuple[str, ...], folder: Path) -> Path:
    """The sections of tailwater.toml with these policies and a shorter window."""
    sections = (HERE / "tailwater.toml").read_text().split("[[policy]]")[0]
    listed = ", ".join(f'"{POLICIES / file}"' for file in files)
    sections = sections.replace('decision_wait = "3s"', 'decision_wait = "2s"')
    path = folder / "cookbook.toml"
    path.write_text(sections.replace("[sampling]\n", f"[sampling]\npolicy_files = [{listed}]\n"))
    return path


def problems(
    kinds: dict[str, Kind], outputs: list[dict[str, Any]], tailwater: Tailwater, sink: Sink
) -> list[str]:
    """Traces with an unexpected decision, and policies that were not credited."""
    spans = [span for output in outputs for span in output["spans"]]
    after = tailwater.wait_until_at_rest(len(spans))
    sent = Counter(span["trace_id"] for span in spans)
    arrived = Counter(span["trace_id"] for span in sink.spans())
    found, credits = [], {"traces_kept_total": Counter(), "traces_dropped_total": Counter()}
    for output in outputs:
        for trace_id, name in output["kinds"].items():
            kind = kinds[name]
            policy, kept = kind.decision(trace_id)
            credits["traces_kept_total" if kept else "traces_dropped_total"][policy] += 1
            expected = sent[trace_id] if kept else 0
            if arrived[trace_id] != expected:
                found.append(f"{trace_id} ({name}): {arrived[trace_id]} spans, not {expected}")
    for metric, expected in credits.items():
        got = after.by(metric, "policy")
        if got != expected:
            found.append(f"{metric} is {got}, not {dict(expected)}")
    return found


def run(report: Report, binary: Path, node_sender: Path, children: Children) -> None:
    for files, kinds in runs().items():
        name = f"under {' and '.join(files)} both SDKs' traffic is kept and dropped as it says"
        sink = Sink()
        try:
            tailwater = Tailwater(binary, config(files, children.folder), sink.port, children)
            tailwater.wait_until_ready()
            senders = Senders(plan(kinds), node_sender, tailwater, children)
            found = problems(kinds, senders.wait(), tailwater, sink)
            report.check(name, found + tailwater.stop())
        except TroubleError as trouble:
            report.check(name, [str(trouble), children.tail("tailwater")])
        finally:
            sink.stop()
