#!/usr/bin/env bash
# The commands that ask a running instance, in a real terminal: tmux, a real service, and traffic for it.
#
#     tests/terminal/run.sh [path to the tailwater binary]      default: builds target/release/tailwater
#
# Needs Python 3.11, and Debian's apt for tmux; root for apt, the first time. The screens go into target/terminal.
# docs/src/operations/commands.md shows them. Takes about half a minute.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)

tailwater=$("$repository/tests/binary.sh" "$@")

if ! command -v tmux >/dev/null; then
    echo "installing Debian's tmux"
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends tmux >/dev/null
fi
export PYTHONDONTWRITEBYTECODE=1
exec python3 "$here/verify.py" "$tailwater" "$repository/target/terminal"
