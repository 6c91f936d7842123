#!/usr/bin/env bash
# The control API under a client that nobody here wrote: grpcurl lists, describes and calls
# everything, trials and recordings of live traffic too, over plaintext and over TLS with a token, and with
# each of enable_lifecycle and enable_recording on and off.
#
#     tests/real/control.sh [path to the tailwater binary]      default: builds target/release/tailwater
#
# Needs Go, Python, openssl and curl. grpcurl is installed into target/real/go.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
cache=$repository/target/real
grpcurl=$cache/go/bin/grpcurl
mkdir -p "$cache"

if (($# == 1)); then
    tailwater=$(realpath -e "$1")
else
    cargo build --release --manifest-path "$repository/Cargo.toml"
    tailwater=${CARGO_TARGET_DIR:-$repository/target}/release/tailwater
fi
if [[ ! -x $grpcurl ]]; then
    GOBIN=$cache/go/bin go install github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3
fi

folder=$(mktemp -d)
pid=
stop() {
    if [[ -n $pid ]]; then kill "$pid" && wait "$pid" || true; fi
    pid=
}
trap 'stop; rm -rf "$folder"' EXIT

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost \
    -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE -keyout "$folder/key.pem" -out "$folder/cert.pem" 2>/dev/null
echo s3cret-s3cret >"$folder/token"

# Starts the service with more settings of [telemetry]; sets `address` and `receiver`.
start() {
    cat >"$folder/tailwater.toml" <<TOML
[receiver.grpc]
endpoint = "127.0.0.1:0"
[receiver.http]
endpoint = "127.0.0.1:0"
[sampling]
decision_wait = "1s"
decision_wait_after_root_received = "0s"
[telemetry]
endpoint = "127.0.0.1:0"
log_format = "json"
$1
[[policy]]
name = "nothing"
type = "probabilistic"
sampling_percentage = 0
TOML
    "$tailwater" run --config "$folder/tailwater.toml" 2>"$folder/log" &
    pid=$!
    for _ in $(seq 100); do
        address=$(sed -n 's/.*"admin_address":"\([^"]*\)".*/\1/p' "$folder/log")
        receiver=$(sed -n 's/.*"http_address":"\([^"]*\)".*/\1/p' "$folder/log")
        if [[ -n $address ]]; then return; fi
        sleep 0.1
    done
    cat "$folder/log" >&2
    exit 1
}

# Checks that the output of a command has a text.
has() {
    local wanted=$1 said
    shift
    said=$("$@" 2>&1 || true)
    if [[ $said != *"$wanted"* ]]; then
        printf 'missing %q in the answer to: %s\n%s\n' "$wanted" "$*" "$said" >&2
        exit 1
    fi
    echo "ok: ${*: -1}: $wanted"
}

calls() {
    local call=("$grpcurl" "$@")
    local control=tailwater.control.v1.Control
    for service in $control grpc.health.v1.Health grpc.reflection.v1.ServerReflection \
        grpc.reflection.v1alpha.ServerReflection; do
        has "$service" "${call[@]}" "$address" list
    done
    for method in GetStatus Explain WatchDecisions TryPolicies Record Reload; do
        has "$control.$method" "${call[@]}" "$address" list $control
    done
    has 'percentage' "${call[@]}" "$address" describe tailwater.control.v1.PolicyStatus
    has '"ready": true' "${call[@]}" "$address" $control/GetStatus
    has 'NotFound' "${call[@]}" -d '{"trace_id": "1"}' "$address" $control/Explain
    has 'InvalidArgument' "${call[@]}" -d '{"trace_id": "?"}' "$address" $control/Explain
    has 'InvalidArgument' "${call[@]}" -d '{"policies": ["nope"]}' "$address" \
        $control/WatchDecisions
    has 'Headers' "${call[@]}" -vv -max-time 1 -d '{}' "$address" $control/WatchDecisions
    has 'SERVING' "${call[@]}" "$address" grpc.health.v1.Health/Check
}

# Trials and reloads, which need enable_lifecycle.
policies='[[policy]]\nname = \"tried\"\ntype = \"always_sample\"\n'
changes() {
    local call=("$grpcurl" "$@") control=tailwater.control.v1.Control
    has '"reloaded": true' "${call[@]}" "$address" $control/Reload
    has 'InvalidArgument' "${call[@]}" -d '{"policies": "policy = 7"}' "$address" $control/TryPolicies
    has 'InvalidArgument' "${call[@]}" -d "{\"policies\": \"$policies\", \"duration\": \"0s\"}" \
        "$address" $control/TryPolicies
    streams try TryPolicies "{\"policies\": \"$policies\", \"duration\": \"3s\"}" "${call[@]}"
    echo "ok: TryPolicies: the trace is newly kept"
}

# Recordings, which need enable_recording.
recordings() {
    local call=("$grpcurl" "$@") control=tailwater.control.v1.Control
    has 'InvalidArgument' "${call[@]}" -d '{"percentage": 101}' "$address" $control/Record
    streams record Record '{"percentage": 100, "duration": "3s"}' "${call[@]}"
    echo "ok: Record: the whole trace and a summary"
}

# Calls a method of a stream, sends a trace once it runs, and checks what it answers.
streams() {
    local what=$1 method=$2 asked=$3 id
    shift 3
    id=$(openssl rand -hex 16)
    "$@" -d "$asked" "$address" "tailwater.control.v1.Control/$method" >"$folder/streamed" &
    local call=$!
    for _ in $(seq 100); do
        if "$@" "$address" tailwater.control.v1.Control/GetStatus | grep -qE '"(trialRunning|recordings)":'; then
            break
        fi
    done
    curl --silent --show-error --fail --output /dev/null --header 'content-type: application/json' \
        "http://$receiver/v1/traces" --data '{"resourceSpans": [{"scopeSpans": [{"spans": [{
          "traceId": "'"$id"'", "spanId": "b7ad6b7169203331", "name": "GET /cart"}]}]}]}'
    wait $call
    python3 "$here/streamed.py" "$what" "$id" <"$folder/streamed"
}

# Calls that name the key of [telemetry] without which they may not be made.
refuses() {
    local key=$1 method=$2
    has 'PermissionDenied' "$grpcurl" -plaintext "$address" "tailwater.control.v1.Control/$method"
    has "$key" "$grpcurl" -plaintext "$address" "tailwater.control.v1.Control/$method"
}

start ""
calls -plaintext
has '"recentDecisions":[]' curl -s "http://$address/-/status"
refuses enable_lifecycle TryPolicies
refuses enable_lifecycle Reload
refuses enable_recording Record
stop

start "enable_lifecycle = true"
changes -plaintext
refuses enable_recording Record
stop

start "enable_recording = true"
recordings -plaintext
refuses enable_lifecycle TryPolicies
refuses enable_lifecycle Reload
stop

start "
enable_lifecycle = true
enable_recording = true
[telemetry.tls]
cert_file = \"$folder/cert.pem\"
key_file = \"$folder/key.pem\"
[telemetry.auth]
bearer_token_file = \"$folder/token\""
tls=(-cacert "$folder/cert.pem")
told=("${tls[@]}" -H 'authorization: Bearer s3cret-s3cret')
calls "${told[@]}"
changes "${told[@]}"
recordings "${told[@]}"
has 'Unauthenticated' "$grpcurl" "${tls[@]}" "$address" list
for version in --http1.1 --http2; do
    has '"ready":true' curl -s $version --cacert "$folder/cert.pem" -u any:s3cret-s3cret \
        "https://$address/-/status"
done
has '401' curl -s -o /dev/null -w '%{http_code}' --cacert "$folder/cert.pem" "https://$address/-/status"
has 'does not know this trace' "$tailwater" explain --address "https://$address" \
    --ca-file "$folder/cert.pem" --token-file "$folder/token" 1
if grep -q s3cret "$folder/log"; then
    echo "the log has the token" >&2
    exit 1
fi
stop
echo "all calls answered"
