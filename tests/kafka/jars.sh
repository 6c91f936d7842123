#!/usr/bin/env bash
# Fetches the broker of pom.xml from Maven Central, once, and prints the folder of its jars.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# Another pom.xml gets another folder.
name=kafka-$(sha256sum "$here/pom.xml" | cut -c 1-12)
libs=${TAILWATER_TOOLS:-$HOME/.cache/tailwater-tools}/$name
if [[ ! -d $libs ]]; then
    echo "fetching Kafka" >&2
    mvn -q -B -f "$here/pom.xml" \
        org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies \
        -DoutputDirectory="$libs.new" -DincludeScope=runtime >&2
    mv "$libs.new" "$libs"
fi
echo "$libs"
