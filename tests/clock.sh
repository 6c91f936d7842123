#!/usr/bin/env bash
# The wall clock of a running Tailwater steps by an hour forth and back, leaps by a second and
# drifts, under libfaketime, while traces wait. None may be decided early, all must be on time.
#
#     tests/clock.sh [path to the tailwater binary]      default: builds target/release/tailwater
#
# Needs Python 3 and Debian's apt (libfaketime is unpacked into target/clock, not installed). Takes
# about a minute.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=$repository/target/clock
mkdir -p "$cache"
tailwater=${1:-$repository/target/release/tailwater}
(($# == 1)) || cargo build --release --locked --manifest-path "$repository/Cargo.toml"

if [[ ! -d $cache/unpacked ]]; then
    (cd "$cache" && apt-get -qq -o APT::Sandbox::User=root download libfaketime)
    dpkg -x "$cache"/libfaketime_*.deb "$cache/unpacked"
fi
library=$(find "$cache/unpacked" -name libfaketime.so.1 | head -n 1)

exec python3 - "$tailwater" "$library" "$cache" <<'PYTHON'
import os, re, signal, socket, struct, subprocess, sys, time, urllib.request
from pathlib import Path

tailwater, library, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
TRACES, WAIT_S = 200, 6.0
STEPS = {"an hour forth": "+3600s", "an hour back": "-3600s", "a second forth": "+1s",
         "a second back": "-1s", "drift of 5 %": "+0 x1.05"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def field(number, body):
    """A length-delimited field of protobuf."""
    length, size = b"", len(body)
    while size >= 128:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + body


def request():
    now = struct.pack("<Q", time.time_ns())
    spans = b""
    for _ in range(TRACES):
        ids = field(1, os.urandom(16)) + field(2, os.urandom(8))
        spans += field(2, ids + field(4, b"12345678") + field(5, b"span") + b"\x39" + now + b"\x41" + now)
    return field(1, field(2, spans))


def metric(name):
    text = urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics", timeout=5).read().decode()
    return sum(float(v) for v in re.findall(rf"^tailwater_{name}(?:{{.*}})? (\S+)$", text, re.M))


grpc, http, admin = free_port(), free_port(), free_port()
offset, config = folder / "offset", folder / "tailwater.toml"
config.write_text(f'''
[receiver.grpc]
endpoint = "127.0.0.1:{grpc}"
[receiver.http]
endpoint = "127.0.0.1:{http}"
[telemetry]
endpoint = "127.0.0.1:{admin}"
[sampling]
decision_wait = "{WAIT_S:.0f}s"
[exporter.otlp]
endpoint = "http://127.0.0.1:{free_port()}"
[[policy]]
name = "none-but-errors"
type = "status_code"
status_codes = ["ERROR"]
''')
offset.write_text("+0\n")
environment = dict(os.environ, LD_PRELOAD=library, FAKETIME_TIMESTAMP_FILE=str(offset),
                   FAKETIME_NO_CACHE="1", FAKETIME_DONT_FAKE_MONOTONIC="1", DONT_FAKE_MONOTONIC="1")
log = open(folder / "tailwater.log", "wb")
process = subprocess.Popen([tailwater, "run", "--config", config], env=environment,
                           stdout=log, stderr=subprocess.STDOUT)
try:
    for _ in range(100):
        try:
            metric("window_traces")
            break
        except OSError:
            time.sleep(0.1)
    failed = 0
    for name, step in STEPS.items():
        before = metric("decisions_total")
        sent = time.monotonic()
        headers = {"content-type": "application/x-protobuf"}
        urllib.request.urlopen(urllib.request.Request(
            f"http://127.0.0.1:{http}/v1/traces", request(), headers), timeout=5)
        time.sleep(1)
        offset.write_text(step + "\n")
        process.send_signal(signal.SIGHUP)
        time.sleep(1)
        shown = metric("config_last_reload_success_timestamp_seconds") - time.time()
        early = metric("decisions_total") - before
        while metric("decisions_total") - before < TRACES and time.monotonic() < sent + 3 * WAIT_S:
            time.sleep(0.02)
        took = time.monotonic() - sent
        is_fine = early == 0 and WAIT_S <= took < WAIT_S + 1
        failed += not is_fine
        print(f"{'ok  ' if is_fine else 'FAIL'} {name}: its clock is {shown:+.1f} s off; "
              f"{early:.0f} of {TRACES} decided early, all after {took:.2f} s of {WAIT_S} s")
        offset.write_text("+0\n")
    sys.exit(1 if failed else 0)
finally:
    process.kill()
    process.wait()
PYTHON
