#!/usr/bin/env bash
# Builds the Collector that Tailwater is compared with, from Go modules, and prints where it is.
#
# Minutes the first time; Go's own cache makes it a second after that. Needs Go 1.26.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
collector=$(cd "$here/../.." && pwd)/target/peer/collector
mkdir -p "$(dirname "$collector")"
echo "building the Collector" >&2
(cd "$here/collector" && go build -trimpath -ldflags="-s -w" -o "$collector" . >&2)
echo "$collector"
