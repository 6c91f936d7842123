"""A written form of attribute values in which both SDKs, the plan and the sink can be compared.

A value is an object with one member that names its type: {"int": "7"}, {"double": "0.1"},
{"array": [...]}. Numbers are strings because JSON in Node would round integers over 2^53 and has
no NaN. Attributes are lists of [key, value], not objects, so that a comparison sees their order
and a key that comes twice.
"""

import struct
from collections.abc import Mapping
from typing import Any

Value = dict[str, Any]
Attributes = list[list[Any]]


def typed(value: Any) -> Value:
    """Write a Python value; bool comes before int because it is one."""
    if value is None:
        return {"none": True}
    if isinstance(value, bool):
        return {"bool": value}
    if isinstance(value, int):
        return {"int": str(value)}
    if isinstance(value, float):
        return {"double": repr(value)}
    if isinstance(value, str):
        return {"string": value}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, Mapping):
        return {"map": typed_attributes(value)}
    return {"array": [typed(item) for item in value]}


def typed_attributes(attributes: Mapping[str, Any] | None) -> Attributes:
    return [[key, typed(value)] for key, value in (attributes or {}).items()]


def native(value: Value) -> Any:
    """The Python value that was written down."""
    ((kind, written),) = value.items()
    if kind == "none":
        return None
    if kind == "array":
        return [native(item) for item in written]
    if kind == "map":
        return native_attributes(written)
    if kind == "bytes":
        return bytes.fromhex(written)
    return {"int": int, "double": float}.get(kind, lambda as_it_is: as_it_is)(written)


def native_attributes(attributes: Attributes) -> dict[str, Any]:
    return {key: native(value) for key, value in attributes}


def from_otlp(value: Any) -> Value:
    """Write an OTLP AnyValue."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return {"array": [from_otlp(item) for item in value.array_value.values]}
    if kind == "kvlist_value":
        return {"map": attributes_from_otlp(value.kvlist_value.values)}
    return typed(getattr(value, kind) if kind else None)


def attributes_from_otlp(pairs: Any) -> Attributes:
    return [[pair.key, from_otlp(pair.value)] for pair in pairs]


def comparable(written: Any) -> Any:
    """The same tree with every double as its bits.

    JavaScript writes 1e-7 where Python writes 1e-07.
    """
    if isinstance(written, list):
        return [comparable(item) for item in written]
    if not isinstance(written, dict):
        return written
    if set(written) == {"double"}:
        return {"double": struct.pack(">d", float(written["double"])).hex()}
    return {key: comparable(item) for key, item in written.items()}
