"""The shop: its services and, span by span, the traces that both senders play.

`plan()` is deterministic except for the time of day, so every run keeps and drops the same traces.
The senders add nothing to it: they turn each planned span into a span of their SDK.
"""

import random
from typing import Any

from decision import BASELINE, RANDOM_MAX
from values import typed_attributes

SEED = 20260131
MS = 1_000_000

# The notifier exports last, when everything has been decided: its spans are the late ones.
LATE_SERVICES = ["notifier"]
SERVICES = ["gateway", "cart", "inventory", "payment", "shipping", *LATE_SERVICES]
# In Node these export OTLP/JSON, the others OTLP/gRPC: most traces arrive at both receivers.
JSON_IN_NODE = ["cart", "shipping", "notifier"]

# The order in which the services of a round export, with a pause between the groups: the root
# (always the gateway's) last, in the middle, and together with others.
WAVES = [
    [["shipping"], ["payment"], ["inventory"], ["cart"], ["gateway"]],
    [["inventory"], ["cart"], ["gateway"], ["payment"], ["shipping"]],
    [["cart", "shipping"], ["payment", "inventory", "gateway"]],
]

# service, name, kind, parent's index, start and end as a share of the trace's duration
ROUTES = {
    "GET /api/products": [
        ("gateway", "GET /api/products", "SERVER", None, 0.0, 1.0),
        ("gateway", "inventory.List", "CLIENT", 0, 0.1, 0.9),
        ("inventory", "inventory.List", "SERVER", 1, 0.15, 0.85),
    ],
    "POST /api/cart": [
        ("gateway", "POST /api/cart", "SERVER", None, 0.0, 1.0),
        ("cart", "cart.AddItem", "SERVER", 0, 0.1, 0.9),
        ("cart", "SELECT carts", "CLIENT", 1, 0.2, 0.4),
        ("inventory", "inventory.Reserve", "SERVER", 1, 0.45, 0.8),
    ],
    "POST /api/checkout": [
        ("gateway", "POST /api/checkout", "SERVER", None, 0.0, 1.0),
        ("cart", "cart.Get", "SERVER", 0, 0.05, 0.2),
        ("inventory", "inventory.Take", "SERVER", 0, 0.2, 0.35),
        ("gateway", "payment.Charge", "CLIENT", 0, 0.4, 0.8),
        ("payment", "payment.Charge", "SERVER", 3, 0.42, 0.78),
        ("payment", "POST card network", "CLIENT", 4, 0.45, 0.75),
        ("shipping", "orders publish", "PRODUCER", 0, 0.85, 0.9),
        ("shipping", "orders process", "CONSUMER", 6, 0.91, 0.99),
    ],
}

# How many traces of each kind one language sends; `shape` describes the kinds.
KINDS = {
    "error": 22,
    "error and slow": 6,
    "error, then late": 4,
    "slow": 20,
    "slow only as a whole": 6,
    "slow by 1 ns": 2,
    "exactly 500 ms": 2,
    "looks like an error": 10,
    "late": 6,
    "late error": 4,
    "plain": 200,
}

# Calls from the Python gateway to the Node payment service, one trace across both.
CALLS = ["plain", "error", "slow", "plain", "error", "vendor"]

UNUSUAL = {
    "shop.unicode": "Überweisung ✓ 漢字 🛒",
    "größe.キー": "key with other letters",
    "shop.empty": "",
    "shop.control": "tab\tline\nnul\0end",
    "shop.long": "0123456789" * 500,
    "shop.negative": -7,
    "shop.big": 2**53 - 1,
    "shop.double": 0.1,
    "shop.tiny": 5e-324,
    "shop.nan": float("nan"),
    "shop.infinite": float("-inf"),
    "shop.false": False,
    "shop.strings": ["a", "", "ü"],
    "shop.ints": [1, 2, 3],
    "shop.doubles": [0.5, 1.5],
    "shop.bools": [True, False],
    "shop.nothing": [],
}
# Values that the Node SDK refuses or would round.
UNUSUAL_PYTHON = UNUSUAL | {
    "shop.bytes": b"\x00\xff\x80",
    "shop.max": 2**63 - 1,
    "shop.min": -(2**63),
    "shop.mixed": ["a", 1, [True, None]],
    "shop.map": {"a": {"b": [1, "x"]}, "c": ""},
}

Span = dict[str, Any]
Trace = dict[str, Any]


def plan(base_ns: int) -> dict[str, Any]:
    """Everything that is sent; `base_ns` is the time, in nanoseconds, of the first trace."""
    return {
        "seed": SEED,
        "services": {name: service(name) for name in SERVICES},
        "late_services": LATE_SERVICES,
        "rounds": {
            "python": rounds("python", base_ns, UNUSUAL_PYTHON),
            "node": rounds("node", base_ns, UNUSUAL),
        },
        "calls": [call(index, kind, base_ns) for index, kind in enumerate(CALLS)],
    }


def service(name: str) -> dict[str, Any]:
    return {
        "json_in_node": name in JSON_IN_NODE,
        "resource": typed_attributes(
            {
                "service.name": name,
                "service.namespace": "läden",
                "service.instance.id": f"{name}-1",
                "shop.zones": ["a", "b"],
                "shop.canary": name == "cart",
                "shop.replicas": 3,
            }
        ),
        "resource_schema_url": "https://opentelemetry.io/schemas/1.30.0",
        "scope": {
            "name": f"shop.{name}",
            "version": "1.2.0",
            "schema_url": "https://opentelemetry.io/schemas/1.27.0",
        },
    }


def rounds(language: str, base_ns: int, unusual: dict[str, Any]) -> list[dict[str, Any]]:
    """The traces of one language, mixed, and dealt out to one round for each order of export."""
    rng = random.Random(f"{SEED} {language}")
    kinds = [kind for kind, count in KINDS.items() for _ in range(count)]
    traces = [trace(kind, base_ns, rng) for kind in kinds]
    traces += [continued(incoming, base_ns, rng) for incoming in incoming_contexts(rng)]
    rng.shuffle(traces)
    for one in traces[::5]:
        add_unusual(one, unusual, rng)
    return [{"waves": w, "traces": traces[i :: len(WAVES)]} for i, w in enumerate(WAVES)]


def trace(kind: str, base_ns: int, rng: random.Random) -> Trace:
    """One trace from one of the routes; only the plain ones use the shorter routes."""
    route = "POST /api/checkout" if kind != "plain" else rng.choice(list(ROUTES))
    start = base_ns + rng.randrange(1000) * MS + rng.randrange(MS)
    spans = shape(kind, route, start, rng)
    for index, span in enumerate(spans):
        span["attributes"] = ordinary_attributes(route, index, rng)
    return {"kind": kind, "incoming": None, "spans": spans}


def shape(kind: str, route: str, start: int, rng: random.Random) -> list[Span]:
    """The spans of a trace: when each starts and ends, and which of them failed."""
    duration = {
        "error and slow": rng.randrange(501, 5000) * MS,
        "slow": rng.randrange(501, 5000) * MS,
        "slow by 1 ns": 500 * MS + 1,
        "exactly 500 ms": 500 * MS,
    }.get(kind, rng.randrange(5, 400) * MS + rng.randrange(MS))
    spans = [planned(row, start, duration) for row in ROUTES[route]]
    if kind.startswith("error"):
        fail(rng.choice(spans), rng)
    if kind == "slow only as a whole":
        # Every span is short, but the parcel is handed over long after the request was answered.
        row = ("shipping", "parcel handed over", "CONSUMER", 6, 0.0, 1.0)
        spans.append(planned(row, start + 600 * MS, 30 * MS))
    if kind == "looks like an error":
        failing = rng.choice(spans)
        fail(failing, rng)
        failing["status"] = None
    if "late" in kind:
        spans.append(planned(("notifier", "mail sent", "CONSUMER", 0, 0.9, 0.95), start, duration))
        if kind == "late error":
            spans[-1]["status"] = {"code": "ERROR", "message": "mailbox full"}
    return spans


def planned(row: tuple, start: int, duration: int) -> Span:
    name_of_service, name, kind, parent, first, last = row
    return {
        "service": name_of_service,
        "name": name,
        "kind": kind,
        "parent": parent,
        "start": str(start + int(first * duration)),
        "end": str(start + (duration if last == 1.0 else int(last * duration))),
        "attributes": [],
        "events": [],
        "links": [],
        "status": {"code": "OK", "message": ""} if kind == "SERVER" and parent is None else None,
    }


def fail(span: Span, rng: random.Random) -> None:
    span["status"] = {"code": "ERROR", "message": rng.choice(["Karte abgelehnt: ✗", "timeout", ""])}
    thrown = {
        "exception.type": "CardDeclined",
        "exception.message": "карта",
        "exception.escaped": False,
    }
    span["events"].append(
        {"name": "exception", "at": span["end"], "attributes": typed_attributes(thrown)}
    )


def ordinary_attributes(route: str, index: int, rng: random.Random) -> list:
    return typed_attributes(
        {
            "http.route": route,
            "http.response.status_code": rng.choice([200, 201, 500]),
            "error": rng.random() < 0.2,
            "shop.price": rng.randrange(1, 10_000) / 100,
            "shop.step": index,
            "shop.customer": f"c-{rng.randrange(10**6)}",
        }
    )


def add_unusual(one: Trace, unusual: dict[str, Any], rng: random.Random) -> None:
    """Values that go wrong easily, on a span, its event and its links; and an empty name."""
    span = rng.choice(one["spans"])
    attributes = typed_attributes(unusual)
    span["attributes"] = span["attributes"] + attributes
    span["events"].append({"name": "", "at": span["start"], "attributes": attributes})
    for _ in range(2):
        linked = {
            "trace_id": f"{rng.getrandbits(128):032x}",
            "span_id": f"{rng.getrandbits(64):016x}",
        }
        span["links"].append(linked | {"attributes": attributes[:5]})
    rng.choice(one["spans"])["name"] = ""


def incoming_contexts(rng: random.Random) -> list[dict[str, Any]]:
    """Contexts from senders outside the shop.

    Their traces have no root span here, and come to the edges of the rules: randomness on either
    side of the baseline's threshold, other vendors' tracestate, sampling done upstream.
    """
    high, low = RANDOM_MAX - 2, 5
    cases = [
        ("plain", BASELINE, "vendor=x"),
        ("plain", BASELINE - 1, "vendor=x"),
        ("plain", high, "vendor=x,congo=t61rcWkgMzE"),
        ("plain", high, ""),
        ("plain", low, ""),
        ("error", low, "vendor=x"),
        ("slow", low, "rojo=00f067aa0ba902b7,vendor=x"),
        # The explicit randomness counts, not the trace id; it is passed on.
        ("plain", low, "vendor=x,ot=rv:fffffffffffff0"),
        ("plain", high, "ot=rv:00000000000001,vendor=x"),
        # Sampled upstream: a higher threshold stays, a lower one is raised, an impossible one is
        # removed.
        ("error", high, "ot=th:8,vendor=x"),
        ("plain", high, "vendor=x,ot=th:fd"),
        ("plain", high, "vendor=x,ot=th:4"),
        ("error", low, "vendor=x,ot=th:c"),
    ]
    return [
        {
            "kind": kind,
            "trace_id": f"{rng.getrandbits(72):018x}{randomness:014x}",
            "span_id": f"{rng.getrandbits(64):016x}",
            "tracestate": tracestate,
        }
        for kind, randomness, tracestate in cases
    ]


def continued(incoming: dict[str, Any], base_ns: int, rng: random.Random) -> Trace:
    return trace(incoming["kind"], base_ns, rng) | {
        "kind": f"incoming, {incoming['kind']}",
        "incoming": incoming,
    }


def call(index: int, kind: str, base_ns: int) -> dict[str, Any]:
    """A checkout whose payment runs in the other language: the calling half and the called half."""
    rng = random.Random(f"{SEED} call {index}")
    incoming = None
    if kind == "vendor":
        trace_id = f"{rng.getrandbits(72):018x}{RANDOM_MAX - 3:014x}"
        incoming = {"trace_id": trace_id, "span_id": "00f067aa0ba902b7", "tracestate": "vendor=x"}
    one = trace("slow" if kind == "slow" else "looks like an error", base_ns, rng)
    called = [span for span in one["spans"] if span["service"] == "payment"]
    calling = [span for span in one["spans"] if span["service"] in ("gateway", "cart", "inventory")]
    if kind == "error":
        fail(called[-1], rng)
    called[0]["parent"], called[1]["parent"] = None, 0
    return {
        "calling": {"kind": f"call, {kind}", "incoming": incoming, "spans": calling},
        "from": calling.index(next(span for span in calling if span["kind"] == "CLIENT")),
        "called": {"kind": f"call, {kind}", "incoming": None, "spans": called},
    }
