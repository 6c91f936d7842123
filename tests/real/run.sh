#!/usr/bin/env bash
# Real clients, a real Prometheus, the real binary: a small shop on the OpenTelemetry SDKs
# of Python and Node sends through `tailwater run` to a sink; what came of every span is checked. The
# same for every file in policies/, the schema of the configuration under a real validator, and TLS
# with the certificates of openssl and the clients of others.
#
#     tests/real/run.sh [path to the tailwater binary]      default: builds target/release/tailwater
#
# Needs Python 3.11, Node 20 with npm, openssl, curl, and Debian's apt; root for apt, the first time. Everything is
# installed into target/real (but python3-venv, where Debian's Python lacks it), and no service of
# the machine is started. The files and logs of a run stay in target/real/run.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
cache=$repository/target/real
mkdir -p "$cache"

# Node packages. The sender is copied beside them, because Node searches from the importing file up.
install_node() {
    mkdir -p "$cache/node"
    cp "$here/node/send.mjs" "$cache/node/"
    cmp -s "$here/node/package-lock.json" "$cache/node/installed.json" && return
    echo "installing the Node SDK"
    cp "$here/node/package.json" "$here/node/package-lock.json" "$cache/node/"
    (cd "$cache/node" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
    cp "$here/node/package-lock.json" "$cache/node/installed.json"
}

tailwater=$("$repository/tests/binary.sh" "$@")

"$here/venv.sh" "$cache/venv" "$here/requirements.txt"
install_node
"$here/prometheus.sh" "$cache/prometheus"

export PYTHONDONTWRITEBYTECODE=1
exec "$cache/venv/bin/python" "$here/verify.py" \
    --tailwater "$tailwater" \
    --prometheus "$cache/prometheus/usr/bin/prometheus" \
    --promtool "$cache/prometheus/usr/bin/promtool" \
    --node-sender "$cache/node/send.mjs" \
    --folder "$cache/run"
