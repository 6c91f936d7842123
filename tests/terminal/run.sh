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

if (($# > 1)); then
    echo "usage: $0 [path to the tailwater binary]" >&2
    exit 2
fi
if (($# == 1)); then
    tailwater=$(realpath -e "$1")
else
    cargo build --release --manifest-path "$repository/Cargo.toml"
    tailwater=${CARGO_TARGET_DIR:-$repository/target}/release/tailwater
fi

if ! command -v tmux >/dev/null; then
    echo "installing Debian's tmux"
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends tmux >/dev/null
fi
export PYTHONDONTWRITEBYTECODE=1
exec python3 "$here/verify.py" "$tailwater" "$repository/target/terminal"
