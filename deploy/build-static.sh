#!/usr/bin/env bash
# Builds a static binary, the same bytes wherever the checkout lies:
#
#   deploy/build-static.sh [x86_64-unknown-linux-musl|aarch64-unknown-linux-musl]
#
# FEATURES=kafka builds the Kafka receiver in, and OpenSSL for it from source (needs make and perl).
#
# Needs the target (`rustup target add`) and a C compiler for musl, because ring, zstd and the allocator are written
# in C: musl-gcc (Debian: musl-tools), and for another architecture than this machine's Zig (`pip install ziglang`;
# PYTHON names the interpreter that has it). Another one is used if CC and the linker are set as the `cc` crate and
# cargo want them, for instance CC_aarch64_unknown_linux_musl and CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${1:-x86_64-unknown-linux-musl}
# For tests, PROFILE=dev is quicker.
profile=${PROFILE:-release}

if ! rustup target list --installed 2>/dev/null | grep -qx "$target"; then
    echo "build-static: the target is not installed: rustup target add $target" >&2
    exit 1
fi
compiler=CC_${target//-/_}
if [[ $target == "$(uname -m)"-* && -z ${!compiler:-} ]]; then
    export "$compiler=musl-gcc"
    if ! command -v musl-gcc >/dev/null; then
        echo "build-static: musl-gcc is not installed (Debian: musl-tools)" >&2
        exit 1
    fi
fi

if [[ $target != "$(uname -m)"-* && -z ${!compiler:-} ]]; then
    export PYTHON=${PYTHON:-python3}
    if ! "$PYTHON" -m ziglang version >/dev/null 2>&1; then
        echo "build-static: no C compiler for $target: pip install ziglang, or set $compiler" >&2
        exit 1
    fi
    upper=${target^^}
    # Rust brings its own linker, and the start files and the library of musl.
    export "$compiler=$PWD/deploy/zig-cc" "AR_${target//-/_}=$PYTHON -m ziglang ar" \
        "CARGO_TARGET_${upper//-/_}_LINKER=rust-lld"
fi

# The commit and its date, unless the builder knows better: a tarball has no git.
TAILWATER_COMMIT=${TAILWATER_COMMIT:-$(git rev-parse HEAD 2>/dev/null || true)}
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || true)}
export TAILWATER_COMMIT SOURCE_DATE_EPOCH

# Paths of this machine stay out: of Rust's panics, and of assertions in C.
cargo_home=${CARGO_HOME:-$HOME/.cargo}
flags=${target//-/_}
export "CFLAGS_$flags=-ffile-prefix-map=$PWD=/src -ffile-prefix-map=$cargo_home=/cargo"
export RUSTFLAGS="--remap-path-prefix=$PWD=/src --remap-path-prefix=$cargo_home=/cargo"
cargo build --profile "$profile" --locked --features "${FEATURES:-}" --target "$target" --bin tailwater
binary=${CARGO_TARGET_DIR:-target}/$target/${profile/#dev/debug}/tailwater
sha256sum "$binary"
