"""Runs the blocks of shell of a page of the book as they stand, in one bash.

Each must succeed, and print what the page says. `run.sh` puts the programs that the page expects
on the PATH.
"""

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tests/real"))

from running import Report  # noqa: E402

GETTING_STARTED = "getting-started.md"
STEP_BY_STEP = "migration/step-by-step.md"
SECONDS_MAX = 180
MARK = "==== the end of block"


def blocks(page: str) -> list[tuple[str, str]]:
    """The heading above each block of shell, and the block."""
    found, heading = [], ""
    for part in re.finditer(r"^## ([^\n]*)$|^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        if part[1]:
            heading = part[1]
        else:
            found.append((heading, part[2]))
    return found


def run(script: str, folder: Path, begins_in: Path) -> tuple[int, list[str]]:
    """The exit code, and the output of each block that came to its end."""
    with open(folder / "output", "w+") as output:
        shell = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=begins_in,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = shell.wait(SECONDS_MAX)
        except subprocess.TimeoutExpired:
            code = -1
        finally:
            # The services of a page that did not reach its end are in the shell's process group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGTERM)
        output.seek(0)
        return code, output.read().split(MARK)


def counter(output: str, name: str) -> float | None:
    """A series in the text of /metrics or in an answer of promtool."""
    found = re.search(re.escape(name) + r"[^ ]*(?: =>)? ([0-9.e+]+)", output)
    return float(found[1]) if found else None


# The words that the output of a block must contain.
def kept(output: str) -> bool:
    policies = ("errors", "slow")
    return all(
        counter(output, f'tailwater_traces_kept_total{{policy="{one}"}}') == 1 for one in policies
    )


def replayed(output: str) -> dict[str, float]:
    """The traces that each policy would keep, by the last table of `tailwater replay`."""
    table = output.rpartition("policy ")[2]
    rows = re.findall(r"^ *([a-z][a-z-]*) +([\d,]+) +([\d,]+) ", table, re.MULTILINE)
    return {policy: float(kept.replace(",", "")) for policy, _, kept in rows}


def counted(output: str) -> dict[str, float]:
    """The traces that each policy has kept, by /metrics."""
    series = r'^tailwater_traces_kept_total\{policy="([^"]+)"\} (\d+)'
    rows = re.findall(series, output, re.MULTILINE)
    return {policy: float(kept) for policy, kept in rows}


def keeps_as_expected(kept: dict[str, float]) -> bool:
    expected = {"errors": 10, "slow": 12, "refunds": 5}
    return all(kept.get(policy) == count for policy, count in expected.items())


def keeps_what_replay_says(output: str) -> bool:
    running, said = counted(output), replayed(output)
    would_keep = counter(output, 'tailwater_shadow_traces_total{policy="cart",effect="kept"}') or 0
    return (
        keeps_as_expected(running)
        and all(said.get(policy, 0) == count for policy, count in running.items())
        and 20 <= would_keep <= 70
    )


# By words that are in the block.
CHECKS: dict[str, dict[str, Callable[[str], bool]]] = {
    GETTING_STARTED: {
        "demo --seconds": lambda output: "ledger" in output,
        "tailwater check tailwater.toml\ntailwater run": lambda output: "error" not in output,
        "failed=$(send_trace": kept,
        "/-/decisions/$failed": lambda output: '"errors"' in output,
        "tempo -config.file": lambda output: (
            (counter(output, "tailwater_exporter_queue_spans") or 0) > 1
            and counter(
                output.partition("exporter_queue_spans")[2], "tailwater_exporter_queue_spans"
            )
            == 0
            and (counter(output, "tailwater_exporter_sent_spans_total") or 0) > 1
        ),
        "promtool check config": lambda output: (
            "SUCCESS" in output and '{policy="errors"} => 1 ' in output
        ),
        "cart.test.toml ||": lambda output: "as expected" in output,
        "cat >> policies.toml": lambda output: (
            counter(output, 'tailwater_traces_kept_total{policy="cart"}') == 50
        ),
        "kill $(jobs -p)": lambda output: "error" not in output,
    },
    STEP_BY_STEP: {
        "tailwater convert": lambda output: "note: " in output and "error: " not in output,
        "cat >> tailwater.toml": lambda output: "ok, 5 policies" in output,
        "test --coverage shop": lambda output: "ok. 6 passed" in output and "true and" in output,
        "cmp traffic": lambda output: keeps_as_expected(replayed(output)),
        "--against": lambda output: "ok. 7 passed" in output and "newly kept" in output,
        "shadow = true/": keeps_what_replay_says,
        "/-/reload": lambda output: (
            "ok. 7 passed" in output and 20 <= counted(output).get("cart", 0) <= 80
        ),
        "tailwater explain": lambda output: "was kept by the policy `cart`" in output,
        "kill $(jobs -p)": lambda output: "ERROR" not in output,
    },
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("page", choices=CHECKS)
    told = parser.parse_args()
    folder, checks = told.folder, CHECKS[told.page]
    shutil.rmtree(folder, ignore_errors=True)
    # A page writes into the folder that it begins in.
    begins_in = folder / "folder"
    begins_in.mkdir(parents=True)
    if told.page == GETTING_STARTED:
        for one in REPOSITORY.iterdir():
            if one.name not in ("target", "first-hour", ".git"):
                (begins_in / one.name).symlink_to(one)

    found = blocks((REPOSITORY / "docs/src" / told.page).read_text())
    script = "".join(f"{block}\necho '{MARK}'\n" for _, block in found)
    code, outputs = run(script, folder, begins_in)
    report = Report()
    for index, (heading, block) in enumerate(found):
        reached_end = index < len(outputs) - 1
        problems = [] if reached_end else ["it did not reach its end"]
        output = outputs[index] if index < len(outputs) else ""
        expected = [check for words, check in checks.items() if words in block]
        if not problems and not all(check(output) for check in expected):
            problems = ["it prints something else"]
        report.check(f"{heading}: {block.splitlines()[0]}", problems and [*problems, output])
    report.check("the shell", [f"exit code {code}"] if code else [])
    unused = [words for words in checks if not any(words in block for _, block in found)]
    report.check("each check has its block", unused)
    return report.summary()


if __name__ == "__main__":
    sys.exit(main())
