"""Policies in the Collector's configuration.

The Collector nests two levels deep and has no `or`, but its set of policies is one. So every
policy is converted to disjunctive normal form, and each conjunction becomes a policy of its own:
an `and` of conditions, some of them in `not`. Each conjunction of a `drop` becomes a `drop`.
`span_name`, `service_name` and `same_span` are written as OTTL conditions.
"""

import itertools
import json
from typing import Any

# A condition and whether it is negated.
Literal = tuple[dict, bool]


def normal_form(policies: list[dict]) -> list[tuple[bool, list[Literal]]]:
    """Each conjunction, and whether it vetoes."""
    found = []
    for policy in policies:
        is_veto = policy["type"] == "drop"
        formula = {"type": "and", "policies": policy["policies"]} if is_veto else policy
        found += [(is_veto, literals) for literals in conjunctions(formula, negated=False)]
    return found


def conjunctions(formula: dict, negated: bool) -> list[list[Literal]]:
    kind = formula["type"]
    if kind == "not":
        return conjunctions(formula["policy"], not negated)
    if kind not in ("and", "or"):
        return [[(formula, negated)]]
    parts = [conjunctions(part, negated) for part in formula["policies"]]
    if (kind == "and") == negated:
        return [one for part in parts for one in part]
    return [list(itertools.chain(*chosen)) for chosen in itertools.product(*parts)]


def policies(tailwater: list[dict]) -> list[dict]:
    return [
        policy(f"c{place}", is_veto, literals)
        for place, (is_veto, literals) in enumerate(normal_form(tailwater))
    ]


def policy(name: str, is_veto: bool, literals: list[Literal]) -> dict:
    parts = [part(f"{name}-{place}", literal) for place, literal in enumerate(literals)]
    if is_veto:
        return {"name": name, "type": "drop", "drop": {"drop_sub_policy": parts}}
    if len(parts) == 1:
        return parts[0] | {"name": name}
    return {"name": name, "type": "and", "and": {"and_sub_policy": parts}}


def part(name: str, literal: Literal) -> dict:
    leaf, negated = literal
    made, inverted = condition(leaf)
    if negated == inverted:
        return {"name": name, **made}
    return {"name": name, "type": "not", "not": {"not_sub_policy": {"name": f"{name}-n", **made}}}


def condition(leaf: dict) -> tuple[dict, bool]:
    """A condition, and whether it must still be negated."""
    kind = leaf["type"]
    if kind in ("always_sample", "trace_flags"):
        return {"type": kind}, False
    if kind in ("span_name", "service_name"):
        plain = {key: value for key, value in leaf.items() if key != "invert_match"}
        return ottl(expression(plain)), leaf.get("invert_match", False)
    if kind == "same_span":
        return ottl(" and ".join(expression(part) for part in leaf["policies"])), False
    parameters = {key: value for key, value in leaf.items() if key not in ("type", "name")}
    return {"type": kind, kind: parameters}, False


def ottl(condition: str) -> dict:
    return {
        "type": "ottl_condition",
        "ottl_condition": {"error_mode": "propagate", "span": [condition]},
    }


def expression(leaf: dict) -> str:
    """An OTTL condition of one span."""
    either: list[str] = []
    match leaf["type"]:
        case "status_code":
            either = [f"span.status.code == STATUS_CODE_{code}" for code in leaf["status_codes"]]
        case "trace_flags":
            # OTTL has no bit arithmetic; these are the odd flags that are generated.
            either = [f"span.flags == {flags}" for flags in (1, 0x101)]
        case "trace_state":
            path = f"span.trace_state[{quoted(leaf['key'])}]"
            either = [f"{path} == {quoted(value)}" for value in leaf["values"]]
        case "span_name":
            either = strings("span.name", leaf)
        case "service_name":
            either = strings('resource.attributes["service.name"]', leaf)
        case kind:
            for context in ("span", "resource"):
                path = f"{context}.attributes[{quoted(leaf['key'])}]"
                if kind == "string_attribute":
                    either += strings(path, leaf)
                elif kind == "boolean_attribute":
                    either.append(f"{path} == {str(leaf['value']).lower()}")
                else:
                    either.append(number(path, leaf))
    inverted = "not " if leaf.get("invert_match") else ""
    return f"{inverted}({' or '.join(either)})"


def strings(path: str, leaf: dict) -> list[str]:
    if leaf.get("enabled_regex_matching"):
        # IsMatch alone would write numbers as text.
        return [f"(IsString({path}) and IsMatch({path}, {quoted(e)}))" for e in leaf["values"]]
    return [f"{path} == {quoted(value)}" for value in leaf["values"]]


def number(path: str, leaf: dict) -> str:
    # A boolean or a string compares with no number.
    bounds = [(">=", leaf.get("min_value")), ("<=", leaf.get("max_value"))]
    tests = [f"{path} {sign} {bound}" for sign, bound in bounds if bound is not None]
    return f"({' and '.join(tests)})"


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def config(sets: list[tuple[list[dict], int]], sink_port: int) -> dict[str, Any]:
    """A receiver, a sampler and a pipeline for each set and port."""
    made: dict[str, Any] = {
        "receivers": {},
        "processors": {},
        "exporters": {
            "otlp_grpc": {
                "endpoint": f"127.0.0.1:{sink_port}",
                "tls": {"insecure": True},
                "compression": "none",
                "sending_queue": {"queue_size": 1_000_000, "num_consumers": 4},
            }
        },
        "service": {
            "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "warn"}},
            "pipelines": {},
        },
    }
    for place, (tailwater, port) in enumerate(sets):
        made["receivers"][f"otlp/{place}"] = {
            "protocols": {"http": {"endpoint": f"127.0.0.1:{port}"}}
        }
        made["processors"][f"tail_sampling/{place}"] = {
            # Longer than sending takes: everything is decided when the Collector is told to stop.
            "decision_wait": "60s",
            "num_traces": 100_000,
            "policies": policies(tailwater),
        }
        made["service"]["pipelines"][f"traces/{place}"] = {
            "receivers": [f"otlp/{place}"],
            "processors": [f"tail_sampling/{place}"],
            "exporters": ["otlp_grpc"],
        }
    return escaped(made)


def escaped(value: Any) -> Any:
    """The Collector takes `$` for the beginning of a variable."""
    if isinstance(value, str):
        return value.replace("$", "$$")
    if isinstance(value, dict):
        return {key: escaped(part) for key, part in value.items()}
    return [escaped(part) for part in value] if isinstance(value, list) else value
