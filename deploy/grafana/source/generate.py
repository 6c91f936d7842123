#!/usr/bin/env python3
"""Writes the Grafana dashboards in ../dashboards. They are edited here, and never by hand.

    deploy/grafana/source/generate.py            write the files
    deploy/grafana/source/generate.py --check    exit with 1 if a file is not what would be written

Needs Python 3.11 and nothing else. tests/dashboards/run.sh checks the result.
"""

import json
import sys
from pathlib import Path

from overview import OVERVIEW
from resources import RESOURCES
from span_metrics import SPAN_METRICS

from policies import POLICIES

FOLDER = Path(__file__).resolve().parent.parent / "dashboards"


def main() -> int:
    stale = []
    for made in (OVERVIEW, POLICIES, RESOURCES, SPAN_METRICS):
        file = FOLDER / (made["uid"].removeprefix("tailwater-") + ".json")
        text = json.dumps(made, indent=2, ensure_ascii=False) + "\n"
        if "--check" not in sys.argv:
            file.write_text(text)
        elif not file.exists() or file.read_text() != text:
            stale.append(file.name)
    if stale:
        print(f"{', '.join(stale)}: run deploy/grafana/source/generate.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
