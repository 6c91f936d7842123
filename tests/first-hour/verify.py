"""Runs the blocks of shell of docs/src/getting-started.md as they stand, in one bash.

Each must succeed, and print what the page says. `run.sh` puts what the page expects on the PATH.
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

PAGE = REPOSITORY / "docs/src/getting-started.md"
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


def run(script: str, folder: Path) -> tuple[int, list[str]]:
    """The exit code, and the output of each block that came to its end."""
    with open(folder / "output", "w+") as output:
        shell = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=folder / "repository",
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
            # The services of a page that did not come to its end are in the shell's process group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGTERM)
        output.seek(0)
        return code, output.read().split(MARK)


def counter(output: str, name: str) -> float | None:
    """A series in the text of /metrics or in an answer of promtool."""
    found = re.search(re.escape(name) + r"[^ ]*(?: =>)? ([0-9.e+]+)", output)
    return float(found[1]) if found else None


# What the output of a block must have, by words that are in the block.
def kept(output: str) -> bool:
    policies = ("errors", "slow")
    return all(
        counter(output, f'tailwater_traces_kept_total{{policy="{one}"}}') == 1 for one in policies
    )


CHECKS: dict[str, Callable[[str], bool]] = {
    "demo --seconds": lambda output: "ledger" in output,
    "tailwater check tailwater.toml\ntailwater run": lambda output: "error" not in output,
    "failed=$(send_trace": kept,
    "/-/decisions/$failed": lambda output: '"errors"' in output,
    "tempo -config.file": lambda output: (
        (counter(output, "tailwater_exporter_queue_spans") or 0) > 1
        and counter(output.partition("exporter_queue_spans")[2], "tailwater_exporter_queue_spans")
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
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    folder = parser.parse_args().folder
    shutil.rmtree(folder, ignore_errors=True)
    # The page writes into the folder that it begins in.
    (folder / "repository").mkdir(parents=True)
    for one in REPOSITORY.iterdir():
        if one.name not in ("target", "first-hour", ".git"):
            (folder / "repository" / one.name).symlink_to(one)

    found = blocks(PAGE.read_text())
    code, outputs = run("".join(f"{block}\necho '{MARK}'\n" for _, block in found), folder)
    report = Report()
    for index, (heading, block) in enumerate(found):
        came_to_end = index < len(outputs) - 1
        problems = [] if came_to_end else ["it did not come to its end"]
        output = outputs[index] if index < len(outputs) else ""
        expected = [check for words, check in CHECKS.items() if words in block]
        if not problems and not all(check(output) for check in expected):
            problems = ["it prints something else"]
        report.check(f"{heading}: {block.splitlines()[0]}", problems and [*problems, output])
    report.check("the shell", [f"exit code {code}"] if code else [])
    unused = [words for words in CHECKS if not any(words in block for _, block in found)]
    report.check("each check has its block", unused)
    return report.summary()


if __name__ == "__main__":
    sys.exit(main())
