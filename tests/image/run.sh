#!/usr/bin/env bash
# Builds the image of deploy/Dockerfile around a binary that is there already, runs it as the Dockerfile says
# (read-only root, no capabilities, no root user), and asks it: configuration, readiness, health check, shutdown.
#
#   tests/image/run.sh target/x86_64-unknown-linux-musl/release/tailwater
#
# Needs root, and installs what is missing of Debian's buildah, podman and runc; where that fails it says so and ends
# with 0. The stage that compiles is not run, which takes a whole release build: tests/image/compile.sh runs it.
set -euo pipefail
cd "$(dirname "$0")/../.."
binary=${1:?the path of a static binary}

tools=(buildah podman runc)
if ! type -P "${tools[@]}" >/dev/null; then
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${tools[@]}" uidmap catatonit; } \
        >/dev/null || true
fi
for tool in "${tools[@]}"; do
    if ! command -v "$tool" >/dev/null; then
        echo "image: NOT RUN: $tool is not installed"
        exit 0
    fi
done
if ldd "$binary" 2>&1 | grep -q '=>'; then
    echo "image: $binary is not static: it cannot run in an image without libraries" >&2
    exit 1
fi

work=$(mktemp -d)
storage=(--root "$work/storage" --runroot "$work/run" --storage-driver vfs)
# No timers of systemd for the health check: the script runs it.
export DISABLE_HC_SYSTEMD=true
podman() { command podman "${storage[@]}" --runtime "$(command -v runc)" --cgroup-manager cgroupfs "$@"; }
buildah() { command buildah "${storage[@]}" "$@"; }
cleanup() {
    podman rm --all --force --time 1 >/dev/null 2>&1 || true
    buildah rmi --all --force >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap cleanup EXIT
fail() {
    echo "image: FAILED: $*" >&2
    podman logs tailwater >&2 || true
    exit 1
}

# The files that the compiling stage leaves.
mkdir -p "$work/build/out/state" "$work/build/etc/ssl/certs"
install "$binary" "$work/build/out/tailwater"
cp /etc/ssl/certs/ca-certificates.crt "$work/build/etc/ssl/certs/"
commit=$(git rev-parse HEAD 2>/dev/null || echo unknown)
buildah bud --quiet --isolation chroot --format docker --build-context "build=$work/build" \
    --build-arg "COMMIT=$commit" --build-arg SOURCE_DATE_EPOCH=0 --file deploy/Dockerfile --tag tailwater . >/dev/null

inspected() { podman image inspect --format "$1" tailwater; }
[[ $(inspected '{{.User}}') == 65532:65532 ]] || fail "the user is not 65532"
[[ $(inspected '{{index .Labels "org.opencontainers.image.revision"}}') == "$commit" ]] || fail "no revision"
[[ $(inspected '{{index .Labels "org.opencontainers.image.licenses"}}') == Apache-2.0 ]] || fail "no licence"

limits=(--ulimit nofile=1024:1024 --ulimit nproc=1024:1024)
locked=(--network=host --read-only --cap-drop=all --security-opt=no-new-privileges)
run=(run "${limits[@]}" "${locked[@]}")
podman "${run[@]}" --rm tailwater --version
podman "${run[@]}" --rm tailwater check /etc/tailwater/tailwater.toml

# Ports below those of outgoing connections, and unlikely to be taken.
sed -e 's/0.0.0.0:4317/127.0.0.1:14317/' -e 's/0.0.0.0:4318/127.0.0.1:14318/' -e 's/0.0.0.0:9464/127.0.0.1:19464/' \
    deploy/image/tailwater.toml >"$work/tailwater.toml"
mount=(--volume "$work/tailwater.toml:/etc/tailwater/tailwater.toml:ro")
address=(--env TAILWATER_ADDRESS=http://127.0.0.1:19464)
podman "${run[@]}" --detach --name tailwater "${mount[@]}" "${address[@]}" tailwater >/dev/null

for _ in $(seq 100); do
    if podman healthcheck run tailwater >/dev/null 2>&1; then break; fi
    sleep 0.1
done
podman healthcheck run tailwater >/dev/null || fail "the health check does not pass"
[[ $(podman exec tailwater /usr/bin/tailwater health) == ready ]] || fail "health does not say ready"
pid=$(podman inspect --format '{{.State.Pid}}' tailwater)
[[ $(awk '/^Uid:/ { print $2 }' "/proc/$pid/status") == 65532 ]] || fail "runs as another user"
[[ $(awk '/^CapEff:/ { print $2 }' "/proc/$pid/status") == 0000000000000000 ]] || fail "has capabilities"

podman stop --time 20 tailwater >/dev/null
code=$(podman inspect --format '{{.State.ExitCode}}' tailwater)
[[ $code == 0 ]] || fail "exit code $code after SIGTERM"
size=$(inspected '{{.Size}}')
echo "image: ok, $((size / 1000000)) MB, health check passes, ends with 0"
