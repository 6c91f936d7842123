#!/usr/bin/env bash
# Kills the process with SIGKILL at random moments under load, then lets its disk fail in several ways, and
# compares what the backend got with what was acknowledged.
#
#     tests/durability/run.sh BINARY [--moments N] [--seed N] [--mode process|power]     all but the last
#     tests/durability/run.sh kills BINARY [--moments N] [--seed N] [--mode process|power]
#     tests/durability/run.sh less_memory BINARY
#     tests/durability/run.sh faults BINARY [--fault NAME]... [--hold SECONDS]
#     tests/durability/run.sh recovery BINARY LOAD_GENERATOR     how long a start takes; see benches/README.md
#
# README.md says what is checked. The kills need Python 3.11 and nothing else; the faults need root and Debian's
# strace and e2fsprogs. A fault that cannot be made here is NOT RUN. Everything listens on 127.0.0.1.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONDONTWRITEBYTECODE=1
tools() {
    if [[ $(id -u) != 0 ]] || { command -v strace && command -v mkfs.ext4; } >/dev/null; then return; fi
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends strace e2fsprogs; } >/dev/null ||
        echo "strace and e2fsprogs cannot be installed"
}
case ${1:-} in
kills | less_memory | recovery) exec python3 "$here/$1.py" "${@:2}" ;;
faults)
    tools
    exec python3 "$here/faults.py" "${@:2}"
    ;;
*)
    python3 "$here/kills.py" "$@"
    python3 "$here/less_memory.py" "$1"
    tools
    python3 "$here/faults.py" "${1:?the binary}"
    ;;
esac
