#!/usr/bin/env bash
# Scenarios that need minutes, signals or a whole machine: the release binary under the load
# generator's traffic and a fault. Prints the measurements, and fails if a promise is broken.
#
#     tests/soak/run.sh soak|overload|fair|crowd|kill|pause|reload|stop|scrape|clock|outage [--seconds N] [...]
#
# README.md has the scenarios and their options. Needs Rust and Python 3.11, `clock` also apt.
# Everything listens on 127.0.0.1; logs stay in target/soak. SOAK_BINARY tests another build.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
cd "$repository"
cargo build --release --locked
# The path of the load generator's executable is in cargo's messages, and nowhere else.
load_generator=$(cargo bench --locked --bench load_generator --no-run --message-format=json 2>/dev/null |
    sed -n 's/.*"name":"load_generator".*"executable":"\([^"]*\)".*/\1/p' | tail -1)
export PYTHONDONTWRITEBYTECODE=1
export SOAK_BINARY=${SOAK_BINARY:-${CARGO_TARGET_DIR:-$repository/target}/release/tailwater}
export SOAK_LOAD_GENERATOR=$load_generator SOAK_LOGS=$repository/target/soak
mkdir -p "$SOAK_LOGS"
exec python3 "$here/scenarios.py" "$@"
