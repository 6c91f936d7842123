"""OTLP as far as this test needs it: JSON requests to send, protobuf requests that arrive."""

import json


def request(spans, padding=""):
    """A request with these spans, each (trace id, span id, whether it failed), as JSON."""
    listed = [
        {
            "traceId": trace,
            "spanId": span,
            "name": "operation",
            "startTimeUnixNano": "1700000000000000000",
            "endTimeUnixNano": "1700000000010000000",
            "attributes": [{"key": "http.route", "value": {"stringValue": "/" + span + padding}}],
            "status": {"code": 2 if failed else 0},
        }
        for trace, span, failed in spans
    ]
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "shop"}}]}
    scope = {"scopeSpans": [{"spans": listed}], "resource": resource}
    return json.dumps({"resourceSpans": [scope]}).encode()


def fields(message):
    """The length-delimited fields of a protobuf message, with their numbers."""
    at = 0
    while at < len(message):
        key, at = varint(message, at)
        kind = key & 7
        if kind == 0:
            _, at = varint(message, at)
        elif kind == 1:
            at += 8
        elif kind == 5:
            at += 4
        elif kind == 2:
            length, at = varint(message, at)
            yield key >> 3, message[at : at + length]
            at += length
        else:
            raise ValueError(f"wire type {kind}")


def varint(message, at):
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7


def spans(message):
    """The trace id and the span id of each span of an export request, in hexadecimal."""
    for number, resource in fields(message):
        if number != 1:
            continue
        for number, scope in fields(resource):
            if number != 2:
                continue
            for number, span in fields(scope):
                if number == 2:
                    ids = dict(pair for pair in fields(span) if pair[0] in (1, 2))
                    yield ids[1].hex(), ids[2].hex()
