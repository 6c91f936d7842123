#!/usr/bin/env bash
# Builds the Collector with tail_sampling from Go modules and measures it beside Tailwater, with one
# shard and with two.
#
#     benches/peer/run.sh [options of the load generator]      e.g. --rounds 5 --seconds 20 --json peer.json
#
# Needs Go 1.26. The Collector is the one whose decisions tests/peer/ compares; it is built into
# target/peer, which takes minutes the first time.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
collector=$("$repository/tests/peer/build.sh")
cd "$repository"
exec cargo bench --bench load_generator -- --scenario peer --collector "$collector" "$@"
