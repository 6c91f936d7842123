#!/usr/bin/env bash
# Packs a binary that is there already as a .deb and, where cargo-generate-rpm is installed, as an .rpm:
#
#   deploy/build-static.sh
#   deploy/packages/build.sh target/x86_64-unknown-linux-musl/release/tailwater OUTPUT
#
# The binary has to be a static one, which runs on every distribution, and to run on this machine, because it
# writes its own manual pages and completions. Cargo.toml lists what is in the packages.
set -euo pipefail
cd "$(dirname "$0")/../.."
binary=${1:?the path of the binary} output=${2:?a directory for the packages}
mkdir -p "$output"
output=$(cd "$output" && pwd)
staged=target/package
rm -rf "$staged"
mkdir -p "$staged/man" "$staged/completions"
install -m 755 "$binary" "$staged/tailwater"

"$staged/tailwater" man "$staged/man"
gzip --no-name "$staged"/man/*.1
for shell in bash zsh fish; do
    "$staged/tailwater" completions "$shell" >"$staged/completions/tailwater.$shell"
done
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH
cargo deb --quiet --no-build --no-strip --output "$output"
if command -v cargo-generate-rpm >/dev/null; then
    cargo generate-rpm --output "$output" --payload-compress zstd --source-date "$SOURCE_DATE_EPOCH"
else
    echo "no .rpm: cargo-generate-rpm is not installed" >&2
fi
ls "$output"
