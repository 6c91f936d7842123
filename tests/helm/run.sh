#!/usr/bin/env bash
# The Helm chart in deploy/helm, and the manifests in deploy/kubernetes that are rendered from it: `helm lint`,
# `helm template` over every file of values/, Kubernetes' own schemas on what comes out, and the rendered
# configurations under `tailwater check` and `otelcol validate`. Values that cannot work must be refused with the
# right words.
#
#     tests/helm/run.sh [path to the tailwater binary]      default: builds target/release/tailwater
#
# UPDATE_REFERENCE=1 writes the manifests anew instead of comparing them.
# Needs Go 1.26 and Python 3.11. Helm is built once, into TAILWATER_TOOLS; the rendered files stay in target/helm.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
cache=$repository/target/helm
tools=${TAILWATER_TOOLS:-$HOME/.cache/tailwater-tools}
helm_version=v4.3.1
mkdir -p "$cache" "$tools/bin"

tailwater=$("$repository/tests/binary.sh" "$@")

export GOFLAGS="-modcacherw ${GOFLAGS:-}"
if [[ $(go version -m "$tools/bin/helm" 2>/dev/null) != *helm.sh/helm/v4*"$helm_version"* ]]; then
    echo "building Helm"
    GOBIN=$tools/bin go install "helm.sh/helm/v4/cmd/helm@$helm_version"
fi
# The schemas of ServiceMonitor and PrometheusRule are files of this module.
operator=$(cd "$cache" && go mod download -json \
    github.com/prometheus-operator/prometheus-operator@v0.92.0 | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
"$repository/tests/real/venv.sh" "$cache/venv" "$here/requirements.txt"
collector=$("$repository/tests/peer/build.sh")

export PYTHONDONTWRITEBYTECODE=1
exec "$cache/venv/bin/python" "$here/verify.py" \
    --tailwater "$tailwater" \
    --helm "$tools/bin/helm" \
    --collector "$collector" \
    --crds "$operator/example/prometheus-operator-crd" \
    --folder "$cache/run"
