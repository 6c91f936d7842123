#!/usr/bin/env bash
# Hostile senders against Tailwater and against a real Collector, each abuse on a fresh process.
#
#     tests/abuse/run.sh [--seconds S] [--calm-seconds S] [--test NUMBER]...    default: 60 s, 5 s, all
#
# Prints two Markdown tables; ends with 1 where Tailwater does not hold what RELIABILITY.md promises.
# Needs Go 1.26 for the Collector, which is the one of tests/peer, and 20,000 open files for number 6.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
cd "$repository"

cargo build --release --locked
collector=$(tests/peer/build.sh)

broken=0
printf '\nTailwater\n\n'
cargo bench --locked --bench abuse -- \
    --tailwater "${CARGO_TARGET_DIR:-target}/release/tailwater" "$@" || broken=1
printf '\nCollector\n\n'
cargo bench --locked --bench abuse -- --collector "$collector" "$@" || true
exit "$broken"
