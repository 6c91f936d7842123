#!/usr/bin/env bash
# Builds Jaeger 1.76 from Go modules for jaeger.py, once, and prints where it is.
#
# Takes 5 to 15 minutes, so CI does not do it. The page of the user interface is left out. Needs Go 1.26.
set -euo pipefail

version=v1.76.0
jaeger=${TAILWATER_TOOLS:-$HOME/.cache/tailwater-tools}/bin/jaeger-$version
if [[ ! -x $jaeger ]]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    cd "$folder"
    {
        go mod init jaeger
        go get -tool "github.com/jaegertracing/jaeger/cmd/jaeger@$version"
        go build -trimpath -ldflags="-s -w" -o jaeger github.com/jaegertracing/jaeger/cmd/jaeger
    } >&2
    mkdir -p "$(dirname "$jaeger")"
    mv jaeger "$jaeger"
fi
echo "$jaeger"
