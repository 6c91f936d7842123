#!/usr/bin/env bash
# Builds the static binary from two copies of the checkout in two directories, with two target directories, and
# compares the bytes. Takes two whole builds; with PROFILE=dev shorter ones. A path is for the binary to keep.
#
#   tests/packages/reproducible.sh [OUTPUT]
set -euo pipefail
output=${1:+$(realpath "$1")}
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
TAILWATER_COMMIT=$(git rev-parse HEAD)
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export TAILWATER_COMMIT SOURCE_DATE_EPOCH
for copy in first a/longer/second; do
    mkdir -p "$work/$copy"
    git ls-files -z | xargs -0 tar cf - | tar xf - -C "$work/$copy"
done
for copy in first a/longer/second; do
    env --unset=CARGO_TARGET_DIR "$work/$copy/deploy/build-static.sh" | tee -a "$work/sums"
    if [[ -n $output ]]; then
        cp "$work/$copy"/target/*/*/tailwater "$output"
    fi
    # The second needs the room.
    rm -rf "$work/$copy"
done
if [[ $(cut -d ' ' -f 1 "$work/sums" | sort -u | wc -l) != 1 ]]; then
    echo "reproducible: FAILED: the two builds differ" >&2
    exit 1
fi
echo "reproducible: ok"
