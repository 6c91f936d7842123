#!/usr/bin/env bash
# Prints the path of the tailwater binary that a script below tests/ is to use: the one that it was
# given, or target/release/tailwater, which is then built. For the scripts' first lines:
#
#     tailwater=$("$repository/tests/binary.sh" "$@")
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if (($# > 1)); then
    echo "usage: run.sh [path to the tailwater binary]" >&2
    exit 2
fi
if (($# == 1)); then
    realpath -e "$1"
else
    cargo build --release --manifest-path "$repository/Cargo.toml" >&2
    echo "${CARGO_TARGET_DIR:-$repository/target}/release/tailwater"
fi
