#!/usr/bin/env bash
# The dashboards in deploy/grafana, the alerts in deploy/prometheus and the runbook. It checks that
#
#   - the dashboards are what deploy/grafana/source generates;
#   - they have the types of Grafana's @grafana/schema, unique ids, descriptions, units, the data source
#     variable everywhere, and rates over $__rate_interval;
#   - every query is PromQL (LogQL in the runbook), by the parsers that Grafana uses;
#   - every alert has a severity, a summary, a figure, a heading in the runbook that its link leads to,
#     and tests in which it fires and is silent;
#   - promtool accepts the rules and passes their tests; pint has no objection;
#   - every query runs against a real Prometheus that scrapes a real Tailwater under the demo's traffic,
#     and every series that it refers to exists, but for the features in features-off.txt;
#   - no alert fires under that traffic.
#
# It does not show the dashboards in Grafana: whether they look right has to be seen there.
#
#     tests/dashboards/run.sh [path to the tailwater binary]      default: builds target/debug/tailwater
#
# Needs Python 3.11, Node 20 with npm, Go 1.26, openssl, and Debian's apt; root for apt, the first time. What it
# builds and installs stays in ${TAILWATER_TOOLS:-~/.cache/tailwater-tools}; the files and logs of a run
# stays in target/dashboards. Building pint takes a minute, once.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
tools=${TAILWATER_TOOLS:-$HOME/.cache/tailwater-tools}
rules=$repository/deploy/prometheus
work=$repository/target/dashboards
mkdir -p "$tools/bin" "$work"
export PYTHONDONTWRITEBYTECODE=1

if (($# > 1)); then
    echo "usage: $0 [path to the tailwater binary]" >&2
    exit 2
fi
if (($# == 1)); then
    tailwater=$(realpath -e "$1")
else
    cargo build --locked --manifest-path "$repository/Cargo.toml"
    tailwater=${CARGO_TARGET_DIR:-$repository/target}/debug/tailwater
fi

# The version is part of the name, so that another one is built when go.mod changes.
pint=$tools/bin/pint-$(sed -n 's|.*github.com/cloudflare/pint \(v[0-9.]*\).*|\1|p' "$here/pint/go.mod")
if [[ ! -x $pint ]]; then
    echo "building pint"
    (cd "$here/pint" &&
        go build -trimpath -ldflags="-s -w" -o "$pint" github.com/cloudflare/pint/cmd/pint)
fi

# The scripts are copied beside their packages, because Node searches from the importing file up.
node=$tools/dashboards
mkdir -p "$node"
cp "$here"/node/* "$node"
if ! cmp -s "$node/package-lock.json" "$node/installed"; then
    echo "installing the parsers and Grafana's types"
    (cd "$node" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
    cp "$node/package-lock.json" "$node/installed"
fi
"$here/../real/prometheus.sh" "$tools/prometheus"
promtool=$tools/prometheus/usr/bin/promtool

"$repository/deploy/grafana/source/generate.py" --check
node "$node/check.mjs" "$repository" "$work/queries.json"
"$promtool" check rules --lint=all --lint-fatal "$rules/tailwater-alerts.yml"
(cd "$rules/tests" && "$promtool" test rules tailwater-alerts.test.yml)
"$pint" --no-color --offline --log-level=warn lint --min-severity=info --fail-on=warning \
    "$rules/tailwater-alerts.yml"
exec python3 "$here/verify.py" --tailwater "$tailwater" --prometheus "$tools/prometheus/usr/bin/prometheus" \
    --queries "$work/queries.json" --folder "$work/run"
