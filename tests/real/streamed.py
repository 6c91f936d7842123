"""Checks what grpcurl prints of a trial or a recording, during which one trace was decided.

streamed.py try|record TRACE_ID < what grpcurl printed

The policy in force drops the trace, and the tried policy `tried` keeps it.
"""

import base64
import json
import sys
from collections.abc import Iterator
from typing import Any


def documents(text: str) -> Iterator[dict[str, Any]]:
    """The documents of JSON that follow each other."""
    decoder, at = json.JSONDecoder(), 0
    while text := text[at:].lstrip():
        document, at = decoder.raw_decode(text)
        yield document


def check_trial(answers: list[dict[str, Any]], trace_id: str) -> None:
    assert [one for one in answers if one.get("isLast")] == answers[-1:], "one is the last"
    assert len(answers) > 1, "it tells how far it is"
    current, candidate, changed = (answers[-1][k] for k in ("current", "candidate", "newlyKept"))
    assert current["decidedTraces"] == "1" and "keptTraces" not in current, current
    assert candidate["decidedTraces"] == candidate["keptTraces"] == "1", candidate
    kept = {one["policy"]: one.get("keptTraces") for one in candidate["policies"]}
    assert kept["tried"] == "1", kept
    assert changed["traces"] == "1" and changed["examples"] == [trace_id], changed


def check_recording(answers: list[dict[str, Any]], trace_id: str) -> None:
    part, summary = answers[0]["part"], answers[-1]["summary"]
    assert len(answers) == 2 and part["isLastOfTrace"], "one part, and a summary"
    assert b"GET /cart" in base64.b64decode(part["request"]), part
    decision = part["decision"]
    assert (decision["traceId"], decision["state"]) == (trace_id, "STATE_DROPPED"), decision
    assert summary["traces"] == summary["spans"] == "1", summary
    assert summary["end"] == "END_DURATION" and "skippedTraces" not in summary, summary


if __name__ == "__main__":
    what, of = sys.argv[1:]
    {"try": check_trial, "record": check_recording}[what](list(documents(sys.stdin.read())), of)
