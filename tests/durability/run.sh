#!/usr/bin/env bash
# Kills the process with SIGKILL at random moments under load, and compares what the backend got with what
# was acknowledged.
#
#     tests/durability/run.sh BINARY [--moments N] [--seed N] [--mode process|power]
#
# README.md says what is checked. Needs Python 3.11 and nothing else. Everything listens on 127.0.0.1.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONDONTWRITEBYTECODE=1
exec python3 "$here/kills.py" "$@"
