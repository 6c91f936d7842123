#!/usr/bin/env bash
# Runs the compiling stage of deploy/Dockerfile to its end, then tests the image around the binary that it built:
#
#   tests/image/compile.sh [FEATURES]
#
# The stage's base image, Debian with rustup, is on Docker Hub. Where that cannot be reached, this stand-in serves:
# Debian by debootstrap, with the toolchain of this machine copied to where the official image has it. Needs root,
# buildah, debootstrap, and what tests/image/run.sh needs. Takes a whole release build.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
buildah() { command buildah --root "$work/storage" --runroot "$work/run" --storage-driver vfs "$@"; }
cleanup() {
    buildah rmi --all --force >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap cleanup EXIT

root=$work/root
debootstrap --variant=minbase --include=ca-certificates,gcc,libc6-dev bookworm "$root" \
    "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" >"$work/debootstrap.log" ||
    { tail "$work/debootstrap.log"; exit 1; }
# A registry may be reached through a proxy with a CA of its own.
cp --dereference /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
toolchain=$(rustc --print sysroot)
mkdir -p "$root/usr/local/cargo/bin" "$root/usr/local/rustup/toolchains"
cp "${CARGO_HOME:-$HOME/.cargo}/bin/rustup" "$root/usr/local/cargo/bin/"
for name in cargo rustc; do ln -s rustup "$root/usr/local/cargo/bin/$name"; done
cp -a "$toolchain" "$root/usr/local/rustup/toolchains/"
rm -rf "$root/usr/local/rustup/toolchains"/*/share/doc
echo "default_toolchain = \"${toolchain##*/}\"" >"$root/usr/local/rustup/settings.toml"
echo 'version = "12"' >>"$root/usr/local/rustup/settings.toml"
cat >"$work/Dockerfile" <<'EOF'
FROM scratch
COPY root /
ENV PATH=/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    CARGO_HOME=/usr/local/cargo RUSTUP_HOME=/usr/local/rustup
EOF
buildah bud --quiet --isolation chroot --format docker --tag localhost/rust --file "$work/Dockerfile" "$work" >/dev/null
rm -rf "$root"

buildah bud --isolation chroot --format docker --target build --build-arg RUST=localhost/rust \
    --build-arg "FEATURES=${1:-}" --build-arg "COMMIT=$(git rev-parse HEAD)" \
    --build-arg "SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)" --file deploy/Dockerfile --tag compiled .
container=$(buildah from compiled)
binary=target/image/tailwater
mkdir -p "${binary%/*}"
cp "$(buildah mount "$container")/out/tailwater" "$binary"
sha256sum "$binary"
tests/image/run.sh "$binary"
