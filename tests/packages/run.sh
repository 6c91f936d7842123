#!/usr/bin/env bash
# Packs a static binary as .deb and .rpm (deploy/packages/build.sh), then installs, runs, upgrades and removes
# them in a clean Debian of their own, in a chroot.
#
#   tests/packages/run.sh target/x86_64-unknown-linux-musl/release/tailwater
#
# Needs root, cargo-deb and, for the .rpm, cargo-generate-rpm; installs debootstrap and rpm where they are missing.
# Missing tools are reported, and the rest is tested. CLEAN_ROOT may name a root that debootstrap has made before. systemd does not run in a
# chroot: its unit is tested by systemd-analyze, and the messages to it by `cargo test installing`.
set -euo pipefail
cd "$(dirname "$0")/../.."
binary=${1:?the path of a static binary}
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}

if ! cargo deb --version >/dev/null 2>&1; then
    echo "packages: NOT RUN: cargo-deb is not installed"
    exit 0
fi
if ! type -P debootstrap rpm >/dev/null; then
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends debootstrap rpm; } >/dev/null || true
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
deploy/packages/build.sh "$binary" "$work/packages"
deb=$(echo "$work"/packages/*.deb)
fail() {
    echo "packages: FAILED: $*" >&2
    exit 1
}

if command -v systemd-analyze >/dev/null; then
    exposure=$(systemd-analyze security --offline=true --no-pager --threshold=20 deploy/systemd/tailwater.service) ||
        fail "the unit is rated over 2.0"
    echo "packages: unit: ${exposure##*: }"
else
    echo "packages: unit NOT RATED: systemd-analyze is not installed"
fi

# The files that both packages must contain.
files=(
    usr/bin/tailwater usr/lib/systemd/system/tailwater.service usr/lib/sysusers.d/tailwater.conf
    etc/tailwater/tailwater.toml usr/share/man/man1/tailwater.1.gz usr/share/man/man1/tailwater-run.1.gz
    usr/share/bash-completion/completions/tailwater usr/share/fish/vendor_completions.d/tailwater.fish
    usr/share/tailwater/tailwater.schema.json
)
clean=${CLEAN_ROOT:-$work/clean}
if [[ ! -d $clean ]] && ! { command -v debootstrap && debootstrap --variant=minbase \
    --include=passwd,systemd-standalone-sysusers bookworm "$clean" "$mirror"; } >"$work/debootstrap.log" 2>&1; then
    tail -n 3 "$work/debootstrap.log"
    echo "packages: only unpacked: no clean root, because debootstrap is missing or failed"
    dpkg-deb --extract "$deb" "$work/unpacked"
    for file in "${files[@]}"; do [[ -e $work/unpacked/$file ]] || fail "no $file in the .deb"; done
    "$work/unpacked/usr/bin/tailwater" check "$work/unpacked/etc/tailwater/tailwater.toml"
    exit 0
fi

# installed ROOT: everything is there, the user too, and the service runs as it with the shipped configuration.
installed() {
    local root=$1 file
    for file in "${files[@]}"; do [[ -e $root/$file ]] || fail "no $file"; done
    grep -q '^tailwater:x:[0-9]*:[0-9]*:.*:/var/lib/tailwater:/usr/sbin/nologin$' "$root/etc/passwd" ||
        fail "no system user: $(grep tailwater "$root/etc/passwd")"
    chroot "$root" tailwater check /etc/tailwater/tailwater.toml || fail "check"
    # The default ports may be taken on this machine.
    sed -e 's/127.0.0.1:4317/127.0.0.1:14317/' -e 's/127.0.0.1:4318/127.0.0.1:14318/' \
        -e 's/127.0.0.1:9464/127.0.0.1:19464/' "$root/etc/tailwater/tailwater.toml" >"$root/tmp/tailwater.toml"
    chroot --userspec=tailwater:tailwater "$root" tailwater run --config /tmp/tailwater.toml >"$work/log" 2>&1 &
    local service=$! health=1
    for _ in $(seq 100); do
        if chroot "$root" tailwater health --address http://127.0.0.1:19464 >/dev/null 2>&1; then health=0 && break; fi
        sleep 0.1
    done
    kill "$service" || true
    wait "$service" || { cat "$work/log" && fail "exit code $?"; }
    [[ $health == 0 ]] || { cat "$work/log" && fail "never ready"; }
}

root=$work/deb
cp -a "$clean" "$root"
cp "$deb" "$root/tailwater.deb"
dpkg_in() { chroot "$root" env DEBIAN_FRONTEND=noninteractive dpkg "$@" >"$work/dpkg.log" 2>&1 || {
    cat "$work/dpkg.log" >&2
    fail "dpkg $*"
}; }
dpkg_in --install /tailwater.deb
[[ -e $root/usr/share/doc/tailwater/copyright ]] || fail "no licence"
installed "$root"
# Changes by an administrator survive an upgrade and a removal; a purge removes them.
echo "# changed" >>"$root/etc/tailwater/tailwater.toml"
dpkg_in --install --force-confdef --force-confold /tailwater.deb
grep -q '^# changed$' "$root/etc/tailwater/tailwater.toml" || fail "an upgrade replaced the configuration"
dpkg_in --remove tailwater
[[ ! -e $root/usr/bin/tailwater && -e $root/etc/tailwater/tailwater.toml ]] || fail "remove"
dpkg_in --purge tailwater
[[ ! -e $root/etc/tailwater && ! -e $root/usr/lib/systemd/system/tailwater.service ]] || fail "purge"
echo "packages: .deb ok: $(du -h "$deb" | cut -f1), installed, run, upgraded, removed and purged"

rpm=$(echo "$work"/packages/*.rpm)
if [[ ! -e $rpm ]] || ! command -v rpm >/dev/null; then
    echo "packages: .rpm NOT RUN: cargo-generate-rpm or rpm is not installed"
    exit 0
fi
# Debian's root serves: the package needs no other, and its scripts need a shell and useradd.
root=$work/rpm
cp -a "$clean" "$root"
rpm_in() { rpm --root "$root" "$@" || fail "rpm $*"; }
rpm_in --initdb
rpm_in --install --nodeps "$rpm"
[[ -e $root/usr/share/licenses/tailwater/LICENSE ]] || fail "no licence"
installed "$root"
echo "# changed" >>"$root/etc/tailwater/tailwater.toml"
rpm_in --upgrade --replacepkgs --nodeps "$rpm"
grep -q '^# changed$' "$root/etc/tailwater/tailwater.toml" || fail "an upgrade replaced the configuration"
rpm_in --erase tailwater
[[ ! -e $root/usr/bin/tailwater && -e $root/etc/tailwater/tailwater.toml.rpmsave ]] || fail "erase"
echo "packages: .rpm ok: $(du -h "$rpm" | cut -f1), installed, run, upgraded and erased"
