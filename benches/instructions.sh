#!/usr/bin/env bash
# How many instructions each stage takes for a span, which does not depend on what else the machine does.
# What it does not show is waiting for memory, of which most of `decide` consists.
#
#     benches/instructions.sh [stage ...]
#
# Needs valgrind (callgrind). About three minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stages=("$@")
[ $# -gt 0 ] || stages=(walk intern append ingest decide log encode)
# The path of the executable is in cargo's messages, and nowhere else.
bench=$(cargo bench --locked --bench stages --no-run --message-format=json 2>/dev/null |
    sed -n 's/.*"name":"stages".*"executable":"\([^"]*\)".*/\1/p' | tail -1)
requests=40
# The window fills first, and is counted too: 600 requests, where there is one.
for stage in "${stages[@]}"; do
    case $stage in
    walk | intern) counted=$requests ;;
    *) counted=$((requests + 600)) ;;
    esac
    instructions=$(valgrind --tool=callgrind --callgrind-out-file=/dev/null --collect-atstart=no \
        --toggle-collect="*measured*${stage}*" "$bench" --bench "$stage" "$requests" 2>&1 |
        sed -n 's/.*Collected : \([0-9]*\).*/\1/p')
    awk -v stage="$stage" -v instructions="$instructions" -v spans=$((counted * 1024)) \
        'BEGIN { printf "%-8s %8.0f instructions a span\n", stage, instructions / spans }'
done
