#!/usr/bin/env bash
# Tailwater's Kafka receiver against a real broker, Kafka 4.1.0, fed by a real Collector and a real SDK.
#
#     tests/kafka/run.sh [BINARY] [--parts a,b] [--seed N] [--rate N] [--rounds N] [--outage SECONDS] [--keep FOLDER]
#
# README.md says what each part shows. BINARY is a Tailwater built with `--features kafka`; without it,
# target/debug/tailwater is built so. Needs Java 17, Maven, Go 1.26, Python 3.11 and openssl. The jars stay in
# ${TAILWATER_TOOLS:-~/.cache/tailwater-tools}, Python packages and the Collector in target/. Everything listens on
# 127.0.0.1, and the files of a run are in a temporary folder.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
cache=$repository/target/kafka
mkdir -p "$cache"

if (($# > 0)) && [[ $1 != --* ]]; then
    tailwater=$(realpath -e "$1")
    shift
else
    cargo build --locked --features kafka --manifest-path "$repository/Cargo.toml" >&2
    tailwater=${CARGO_TARGET_DIR:-$repository/target}/debug/tailwater
fi

libs=$("$here/jars.sh")
"$repository/tests/real/venv.sh" "$cache/venv" "$here/requirements.txt"
collector=$("$repository/tests/peer/build.sh")

export PYTHONDONTWRITEBYTECODE=1
exec "$cache/venv/bin/python" "$here/${TAILWATER_KAFKA_SCRIPT:-run.py}" \
    --tailwater "$tailwater" --collector "$collector" --kafka "$libs" "$@"
