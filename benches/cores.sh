#!/usr/bin/env bash
# Shows whether the work of a span grows with the workers and the shards: instructions, which
# callgrind counts one thread at a time, then CPU time and holds of locks on the cores there are.
#
#     benches/cores.sh
#     STAGES_BINARY=path benches/cores.sh      another build of the bench, with the feature lock-counts
#
# Needs valgrind (callgrind). Takes a few minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bench=${STAGES_BINARY:-$(cargo bench --locked --features lock-counts --bench stages --no-run \
    --message-format=json 2>/dev/null |
    sed -n 's/.*"name":"stages".*"executable":"\([^"]*\)".*/\1/p' | tail -1)}
counts=$(mktemp)
trap 'rm -f "$counts"' EXIT
for workers in 1 2 4 8 16; do
    # Threads take turns fairly, so that they meet at the locks.
    STAGES_UNTIMED=1 valgrind --tool=callgrind --fair-sched=yes --callgrind-out-file="$counts" "$bench" \
        --bench "cores-$workers" 40 >/dev/null 2>&1
    # 600 requests fill the window, and 40 follow.
    callgrind_annotate --inclusive=yes --threshold=100 "$counts" | awk -v workers="$workers" '
        # With line tables, inlined code has further lines, which are included in these.
        !/=>/ && /(measured\.rs|\?\?\?):stages::measured::/ {
            gsub(",", "", $1)
            instructions += $1
        }
        END { printf "%2d workers %6.0f instructions a span\n", workers, instructions / 640 / 1024 }'
done
"$bench" --bench cores
