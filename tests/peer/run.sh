#!/usr/bin/env bash
# The same bytes to Tailwater and to a real Collector: what differs must be on the list in README.md.
# Before that, kept spans leave over OTLP/HTTP into the Collector, files that the Collector writes are
# replayed, configurations of the Collector are compared with what `tailwater convert` makes of them, traffic
# moves from tail_sampling to Tailwater without losing a trace, and instances come and go behind Collectors.
#
#     tests/peer/run.sh [path to the tailwater binary [folder of configurations]]
#
# Without a path it builds target/release/tailwater. The folder is for corpus.py; the default is configs/.
# Needs Go 1.26 and Python 3.11. Everything is built and installed into target/peer (but python3-venv,
# where Debian's Python lacks it), and only processes started here are ended.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
cache=$repository/target/peer
mkdir -p "$cache"

if (($# > 2)); then
    echo "usage: $0 [path to the tailwater binary [folder of configurations]]" >&2
    exit 2
fi
tailwater=$("$repository/tests/binary.sh" "${@:1:1}")

"$repository/tests/real/venv.sh" "$cache/venv" "$here/requirements.txt"
collector=$("$here/build.sh")

export PYTHONDONTWRITEBYTECODE=1
"$cache/venv/bin/python" "$here/backend.py" \
    --tailwater "$tailwater" --collector "$collector" --folder "$cache/backend"
"$cache/venv/bin/python" "$here/replay.py" \
    --tailwater "$tailwater" --collector "$collector" --folder "$cache/replay"
"$cache/venv/bin/python" "$here/convert.py" \
    --tailwater "$tailwater" --collector "$collector" --folder "$cache/convert"
"$cache/venv/bin/python" "$here/corpus.py" --configs "${2:-$here/configs}" \
    --tailwater "$tailwater" --collector "$collector" --folder "$cache/corpus"
"$cache/venv/bin/python" "$here/migrate.py" \
    --tailwater "$tailwater" --collector "$collector" --folder "$cache/migrate"
jaeger=${TAILWATER_TOOLS:-$HOME/.cache/tailwater-tools}/bin/jaeger-v1.76.0
if [[ -x $jaeger ]]; then
    "$cache/venv/bin/python" "$here/jaeger.py" \
        --tailwater "$tailwater" --jaeger "$jaeger" --folder "$cache/jaeger"
else
    echo "NOT RUN: answers of a real Jaeger; $here/build-jaeger.sh builds it"
fi
"$cache/venv/bin/python" "$here/fleet.py" \
    --tailwater "$tailwater" --collector "$collector" --folder "$cache/fleet"
exec "$cache/venv/bin/python" "$here/compare.py" \
    --tailwater "$tailwater" --collector "$collector" --folder "$cache/run"
