#!/usr/bin/env bash
# Counts the instructions that each stage takes for a span, and what a budget and span metrics add to
# taking in and deciding. The count does not depend on other load of the machine. It does not show the
# wait for memory, which is most of `decide`.
#
#     benches/instructions.sh
#     STAGES_BINARY=path benches/instructions.sh      another build of the bench
#
# Needs valgrind (callgrind). Takes a few minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Only cargo's messages have the path of the executable.
bench=${STAGES_BINARY:-$(cargo bench --locked --bench stages --no-run --message-format=json 2>/dev/null |
    sed -n 's/.*"name":"stages".*"executable":"\([^"]*\)".*/\1/p' | tail -1)}
counts=$(mktemp)
trap 'rm -f "$counts"' EXIT
valgrind --tool=callgrind --callgrind-out-file="$counts" "$bench" \
    --bench walk intern append ingest decide log encode json 40 >/dev/null 2>&1

# Each stage is a function of its own (benches/stages/measured.rs), sometimes compiled twice. 600
# requests fill the window, and 40 follow; the decisions are those for the first 330 requests.
callgrind_annotate --inclusive=yes --threshold=100 "$counts" | awk '
    match($0, /stages::measured::[a-z]+/) {
        stage = substr($0, RSTART + 18, RLENGTH - 18)
        gsub(",", "", $1)
        instructions[stage] += $1
    }
    END {
        requests["walk"] = requests["intern"] = requests["json"] = 40
        requests["append"] = requests["ingest"] = 640
        requests["decide"] = requests["log"] = requests["encode"] = 330
        for (stage in requests)
            printf "%-11s %6.0f instructions a span\n", stage, instructions[stage] / requests[stage] / 1024
    }' | sort

# The same 640 requests, taken in and decided without and with the addition.
for addition in budget spanmetrics allkinds; do
    STAGES_UNTIMED=1 valgrind --tool=callgrind --callgrind-out-file="$counts" "$bench" \
        --bench "$addition" 40 >/dev/null 2>&1
    callgrind_annotate --auto=no --inclusive=yes --threshold=100 "$counts" | awk -v addition="$addition" '
        match($0, /measured.rs:stages::measured::(without|with)/) {
            side = substr($0, RSTART + 30, RLENGTH - 30)
            gsub(",", "", $1)
            instructions[side] += $1 / 640 / 1024
        }
        END {
            printf "%-11s %6.0f instructions a span, %.0f without, %.3f times\n", addition,
                instructions["with"], instructions["without"], instructions["with"] / instructions["without"]
        }'
done
