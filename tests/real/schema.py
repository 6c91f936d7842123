"""The JSON Schema of the configuration, checked with a real validator.

The tests of `src/config` hold its keys, bounds and words equal to the loader's. The checks here:
it is a valid schema; every file of this repository that `tailwater check` accepts validates; and
files with one mistake each fail both.
"""

import json
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from running import HERE, Report

ROOT = HERE.parent.parent

# One mistake each: the lines before the policy, and the lines of the policy.
WRONG_SECTIONS = [
    "shutdown_timeout = 30",
    'shutdown_timeout = "30 parsecs"',
    'shutdwon_timeout = "30s"',
    "[samplng]",
    '[sampling]\ndecision_wiat = "30s"',
    "[sampling]\nmax_trace_spans = 0",
    "[sampling]\nmemory_limit_mib = 31",
    '[sampling]\npolicy_files = "policies/*.toml"',
    '[sampling.stamp]\npolicy = "rot"',
    '[sampling.stamp]\ntracestate = "true"',
    '[receiver.grpc]\nendpoint = "http://0.0.0.0:4317"',
    "[receiver.grpc]\nmax_recv_msg_size_mib = 1025",
    '[exporter.otlp]\nendpoint = "tempo:4317"',
    '[exporter.otlp]\ncompression = "lz4"',
    '[exporter.otlp.tls]\ncert_file = "client.crt"',
    '[receiver.tls]\nkey_file = "server.key"',
    "[receiver.auth]",
    "[exporter.otlp]\nheaders = { a = 1 }",
    "[exporter.otlp]\nqueue_size_mib = 3",
    '[exporter.otlp.sending_queue]\noverflow = "wait"',
    '[telemetry]\nlog_level = "loud"',
]
WRONG_POLICIES = [
    "",
    'type = "latncy"\nthreshold_ms = 5',
    'type = "latency"',
    'type = "latency"\ntreshold_ms = 5',
    'type = "latency"\nthreshold_ms = "5s"',
    'type = "latency"\nthreshold_ms = -1',
    'type = "latency"\nthreshold_ms = 5\nupper_threshold_ms = 0',
    'type = "status_code"\nstatus_codes = ["EROR"]',
    'type = "status_code"\nstatus_codes = []',
    'type = "status_code"\nstatus_codes = ["OK"]\nthreshold_ms = 5',
    'type = "string_attribute"\nkey = "k"',
    'type = "string_attribute"\nkey = ""\nvalues = ["a"]',
    'type = "string_attribute"\nkey = "k"\nvalues = [1]',
    'type = "numeric_attribute"\nkey = "k"',
    'type = "numeric_attribute"\nkey = "k"\nmin_value = "5"',
    'type = "boolean_attribute"\nkey = "k"\nvalue = "true"',
    'type = "probabilistic"',
    'type = "probabilistic"\nsampling_percentage = 101',
    'type = "probabilistic"\nsampling_percentage = "10 %"',
    'type = "trace_state"\nkey = "a=b"\nvalues = ["c"]',
    'type = "trace_state"\nkey = "a"\nvalues = ["b,c"]',
    'type = "and"\npolicies = []',
    'type = "and"\npolicies = [{ type = "latency" }]',
    'type = "and"\npolicies = [{ name = "x", type = "trace_flags" }]',
    'type = "or"\npolicies = [{ type = "drop", policies = [{ type = "trace_flags" }] }]',
    'type = "or"\npolicies = [{ type = "and", policies = [{ type = "latncy" }] }]',
    'type = "not"\npolicies = [{ type = "trace_flags" }]',
    'type = "not"\npolicy = { type = "probabilistic", sampling_percentage = 5 }',
    'type = "not"\npolicy = { type = "trace_flags", sampling_percentage = 5 }',
    'type = "drop"\nsampling_percentage = 100\npolicies = [{ type = "trace_flags" }]',
    'type = "drop"\npolicies = [{ type = "or", policies = [{ type = "probabilistic",'
    " sampling_percentage = 5 }] }]",
    'type = "same_span"\npolicies = [{ type = "latency", threshold_ms = 5 }]',
    'type = "same_span"\npolicies = [{ type = "not", policy = { type = "span_count",'
    " min_spans = 5 } }]",
    'type = "always_sample"\nlimit = { spans_per_second = 0 }',
    'type = "always_sample"\nlimit = { burst_capacity = 5 }',
    'type = "and"\npolicies = [{ type = "trace_flags", limit = { spans_per_second = 5 } }]',
    'type = "drop"\nlimit = { spans_per_second = 5 }\npolicies = [{ type = "trace_flags" }]',
    'type = "attribute_exists"',
    'type = "attribute_exists"\nkey = "k"\nscope = "event"',
    'type = "numeric_attribute"\nkey = "k"\nmin_value = 1\nabove = 1',
    'type = "numeric_attribute"\nkey = "k"\nmax_value = 1\nbelow = 1',
    'type = "span_kind"\nkinds = []',
    'type = "span_kind"\nkinds = ["client"]',
    'type = "root_span"\ninvert_match = true',
    'type = "span_duration"\nupper_threshold_ms = 5',
    'type = "span_event"',
    'type = "span_event"\nnames = ["a"]\nvalues = ["b"]',
    'type = "and"\npolicies = [{ type = "trace_flags", expires = 2099-01-01T00:00:00Z }]',
    'type = "and"\npolicies = [{ type = "trace_flags", shadow = true }]',
    'type = "always_sample"\nshadow = "yes"',
]
WRONG_NAMES = ['name = "a b"', 'name = "none"', "name = 3", ""]


def wrong_files() -> Iterator[str]:
    good = '[[policy]]\nname = "p"\ntype = "always_sample"\n'
    yield from (f"{lines}\n{good}" for lines in WRONG_SECTIONS)
    yield from (f'[[policy]]\nname = "p"\n{lines}\n' for lines in WRONG_POLICIES)
    yield from (f'[[policy]]\n{line}\ntype = "always_sample"\n' for line in WRONG_NAMES)
    yield good.replace("[[policy]]", "[policy]")


def shipped_files() -> list[Path]:
    folders = [ROOT / folder for folder in ("deploy", "policies", "tests/real")]
    files = (path for folder in folders for path in folder.glob("*.toml"))
    return sorted(path for path in files if not path.name.endswith(".test.toml"))


def conformance_policies() -> Iterator[tuple[str, str]]:
    """Every set of policies that the conformance cases run, with its place."""
    for path in sorted((ROOT / "tests/conformance").glob("*.toml")):
        for case in tomllib.loads(path.read_text())["case"]:
            if "refused" not in case:
                rule = case.get("rule", "").strip().rstrip(",")
                text = case.get("policies") or f'policy = [{{ name = "p", {rule} }}]'
                yield f"{path.name}: {case['name']}", text


def wrong(validator: Any, text: str) -> list[str]:
    """The findings of the validator."""
    errors = validator.iter_errors(tomllib.loads(text))
    return [f"{error.json_path}: {error.message[:300]}" for error in errors]


def refused(binary: Path, file: Path, text: str) -> bool:
    file.write_text(text)
    return subprocess.run([binary, "check", file], capture_output=True).returncode == 1


def run(report: Report, binary: Path, folder: Path) -> None:
    printed = subprocess.run([binary, "check", "--schema"], capture_output=True, check=True)
    schema = json.loads(printed.stdout)
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    report.check(
        "the schema takes every shipped file",
        [f"{file}: {e}" for file in shipped_files() for e in wrong(validator, file.read_text())],
    )
    cases = list(conformance_policies())
    report.check(
        f"the schema takes the policies of all {len(cases)} conformance cases",
        [f"{name}: {error}" for name, text in cases for error in wrong(validator, text)],
    )
    files = list(wrong_files())
    report.check(
        f"the schema refuses {len(files)} files with a mistake",
        [text for text in files if not wrong(validator, text)],
    )
    report.check(
        "`tailwater check` refuses the same",
        [text for text in files if not refused(binary, folder / "wrong.toml", text)],
    )
