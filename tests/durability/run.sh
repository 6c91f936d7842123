#!/usr/bin/env bash
# Kills the process with SIGKILL at random moments under load, then lets its disk fail in several ways, and
# compares what the backend got with what was acknowledged.
#
#     tests/durability/run.sh BINARY [--moments N] [--seed N] [--mode process|power]     kills, then faults
#     tests/durability/run.sh kills BINARY [--moments N] [--seed N] [--mode process|power]
#     tests/durability/run.sh faults BINARY [--fault NAME]... [--hold SECONDS]
#
# README.md says what is checked. The kills need Python 3.11 and nothing else; the faults need root, strace and
# mkfs.ext4. A fault that cannot be made here is NOT RUN. Everything listens on 127.0.0.1.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONDONTWRITEBYTECODE=1
case ${1:-} in
kills | faults) exec python3 "$here/$1.py" "${@:2}" ;;
*)
    python3 "$here/kills.py" "$@"
    python3 "$here/faults.py" "${1:?the binary}"
    ;;
esac
