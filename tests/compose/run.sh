#!/usr/bin/env bash
# The files of deploy/compose, each checked by what it belongs to, and the names that they call each other by. Then
# its shop, its Collector, Tailwater and Prometheus run as processes, with a sink in Tempo's place.
#
#     tests/compose/run.sh [path to the tailwater binary]      default: builds target/release/tailwater
#
# Needs Go 1.26, Python 3.11, Node 20 with npm, and apt. No container is started: images cannot be had from the
# package registries. Everything is installed into target/.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
cache=$repository/target/compose
shop=$repository/deploy/compose/shop
mkdir -p "$cache" "$repository/target/real"

tailwater=$("$repository/tests/binary.sh" "$@")

real=$repository/tests/real
"$real/venv.sh" "$cache/venv" "$here/requirements.txt"
"$real/prometheus.sh" "$repository/target/real/prometheus"
collector=$("$repository/tests/peer/build.sh")
# The packages that the image of the gateway installs. Node searches from the importing file up, so the server is copied.
mkdir -p "$cache/gateway"
cp "$shop/gateway/server.mjs" "$cache/gateway/"
if ! cmp -s "$shop/gateway/package-lock.json" "$cache/gateway/installed.json"; then
    cp "$shop"/gateway/package*.json "$cache/gateway/"
    (cd "$cache/gateway" && npm ci --omit=dev --ignore-scripts --no-audit --no-fund --loglevel=error)
    cp "$shop/gateway/package-lock.json" "$cache/gateway/installed.json"
fi

export PYTHONDONTWRITEBYTECODE=1
exec "$cache/venv/bin/python" "$here/verify.py" \
    --tailwater "$tailwater" \
    --collector "$collector" \
    --prometheus "$repository/target/real/prometheus/usr/bin/prometheus" \
    --promtool "$repository/target/real/prometheus/usr/bin/promtool" \
    --gateway "$cache/gateway/server.mjs" \
    --folder "$cache/run"
