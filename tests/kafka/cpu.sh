#!/usr/bin/env bash
# CPU per span of reading a topic, beside the same requests over gRPC at the same rate, in pairs.
#
#     tests/kafka/cpu.sh BINARY [--rate SPANS_PER_SECOND] [--seconds N] [--pairs N] [--traces 1,20] [--codec zstd]
#
# BINARY is a release build with `--features kafka`. Needs what run.sh needs, and a machine that does nothing else.
set -euo pipefail
TAILWATER_KAFKA_SCRIPT=cpu.py exec "$(dirname "${BASH_SOURCE[0]}")/run.sh" "$@"
