#!/usr/bin/env bash
# Runs every block of shell in two pages of the book, getting-started.md and migration/step-by-step.md, as they
# stand, each page in one bash, and checks what they print.
#
#     tests/first-hour/run.sh [path to the tailwater binary]      default: builds target/release/tailwater
#
# The binary stands for what the page builds with cargo. The Collector is that of tests/peer, telemetrygen is built
# from its Go module, Prometheus is Debian's, and a sink with the two requests of the page stands in Tempo's place,
# which cannot be had from the package registries. The pages have fixed ports, so the blocks run in a network of
# their own where the machine allows it. Needs Go 1.26, Python 3.11, and apt. Takes about 80 s, of which the demo
# has 20, and 40 s for the second page.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
cache=$repository/target/first-hour
mkdir -p "$cache" "$repository/target/real" "$repository/target/compose"

tailwater=$("$repository/tests/binary.sh" "$@")

"$repository/tests/real/venv.sh" "$repository/target/compose/venv" "$repository/tests/compose/requirements.txt"
"$repository/tests/real/prometheus.sh" "$repository/target/real/prometheus"
collector=$("$repository/tests/peer/build.sh")
# A later version than the Collector's: the module proxy does not have that one.
telemetrygen=$cache/go/telemetrygen
if [[ ! -x $telemetrygen ]]; then
    echo "building telemetrygen"
    GOBIN=$cache/go go install github.com/open-telemetry/opentelemetry-collector-contrib/cmd/telemetrygen@v0.161.0
fi
python=$repository/target/compose/venv/bin/python

# The programs that the page expects on the PATH.
rm -rf "$cache/bin"
mkdir "$cache/bin"
ln -s "$tailwater" "$cache/bin/tailwater"
ln -s "$collector" "$cache/bin/otelcol-contrib"
ln -s "$telemetrygen" "$cache/bin/telemetrygen"
ln -s "$repository"/target/real/prometheus/usr/bin/prom* "$cache/bin/"
printf '#!/bin/sh\nexec "%s" "%s/tempo.py" "$@"\n' "$python" "$here" > "$cache/bin/tempo"
cat > "$cache/bin/cargo" <<'END'
#!/bin/sh
# `cargo build` has been done, and `cargo run` runs what was built.
case "$*" in
"build --release") ;;
"run --release -- "*) shift 3 && exec tailwater "$@" ;;
*) echo "cargo $*: not on the page when this test was written" >&2 && exit 1 ;;
esac
END
chmod +x "$cache"/bin/cargo "$cache/bin/tempo"

own_network=()
if unshare --map-root-user --net ip link set lo up 2>/dev/null; then
    own_network=(unshare --map-root-user --net --
        sh -c 'ip link set lo up && exec "$@"' in-own-network)
fi
export PYTHONDONTWRITEBYTECODE=1
PATH=$cache/bin:$PATH
"${own_network[@]}" "$python" "$here/verify.py" --folder "$cache/run" getting-started.md
exec "${own_network[@]}" "$python" "$here/verify.py" --folder "$cache/step-by-step" migration/step-by-step.md
