#!/usr/bin/env bash
# The web page in a real browser: a real service under traffic, headless Chromium, and axe.
#
#     tests/page/run.sh [path to the tailwater binary]      default: builds target/release/tailwater
#
# Needs Node 20 with npm, and Debian's apt for Chromium; root for apt, the first time. The packages of
# Node go into target/page, and so do the screenshots: light, dark, and on a phone.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
cache=$repository/target/page
mkdir -p "$cache"

tailwater=$("$repository/tests/binary.sh" "$@")

if ! command -v chromium >/dev/null; then
    echo "installing Debian's chromium"
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends chromium >/dev/null
fi
if ! cmp -s "$here/package-lock.json" "$cache/installed.json"; then
    echo "installing playwright-core and axe-core"
    cp "$here/package.json" "$here/package-lock.json" "$cache/"
    (cd "$cache" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
    cp "$here/package-lock.json" "$cache/installed.json"
fi
# Node searches for packages from the importing file up.
cp "$here"/*.mjs "$cache/"
exec node "$cache/verify.mjs" "$tailwater" "$(command -v chromium)" "$cache"
