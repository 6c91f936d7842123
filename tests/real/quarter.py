"""Two policies by which every instance decides a trace alike, if it has all of its spans."""

POLICIES = """
[[policy]]
name = "errors"
type = "status_code"
status_codes = ["ERROR"]

[[policy]]
name = "a-quarter"
type = "probabilistic"
sampling_percentage = 25
"""


def is_chosen(trace_id: bytes) -> bool:
    """Whether `a-quarter` keeps a trace: the low 56 bits of its id reach the threshold."""
    return int.from_bytes(trace_id[-7:], "big") >= 3 << 54
