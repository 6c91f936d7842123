"""The faults that a scenario inflicts on the service."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

from processes import LOGS, load

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
EMPTY_SETTINGS = bytes(3) + b"\x04" + bytes(5)


def backend_down(_, sink, seconds):
    sink.go()
    time.sleep(seconds)
    sink.come_back()


def backend_hangs(_, sink, seconds):
    sink.signal(signal.SIGSTOP)
    time.sleep(seconds)
    sink.signal(signal.SIGCONT)


def backend_resets(_, sink, seconds):
    for _ in range(3):
        sink.go()
        sink.come_back()
        time.sleep(seconds / 3)


def stopped(service, _, seconds):
    service.signal(signal.SIGSTOP)
    time.sleep(seconds)
    service.signal(signal.SIGCONT)


def reload_valid(service, _, seconds):
    service.config.write_text(service.head + service.policies)
    for _ in range(5):
        service.signal(signal.SIGHUP)
        time.sleep(seconds / 5)


def reload_invalid(service, _, seconds):
    service.config.write_text(service.head + service.policies.replace("latency", "latancy"))
    service.signal(signal.SIGHUP)
    time.sleep(seconds)
    service.config.write_text(service.head + service.policies)


def connect(address):
    host, port = address.split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def hold_connections(service, count):
    """Clients that begin a request and never end it."""
    held = []
    for _ in range(count):
        grpc, http = connect(service.grpc), connect(service.http)
        grpc.sendall(PREFACE + EMPTY_SETTINGS)
        http.sendall(b"POST /v1/traces HTTP/1.1\r\nhost: t\r\ncontent-type: application/"
                     b"x-protobuf\r\ncontent-length: 100000\r\n\r\n\x0a")
        held += [grpc, http]
    # Wait until the service has accepted and read them.
    time.sleep(0.5)
    return held


def hostile(service, _, seconds):
    """Silent connections, halves, garbage, and connections that are reset with data under way."""
    silent = [connect(service.grpc) for _ in range(200)]
    held = hold_connections(service, 50)
    for _ in range(100):
        for address in (service.grpc, service.http, service.admin):
            with connect(address) as connection:
                connection.sendall(os.urandom(200))
                # A linger of zero sends a reset instead of a normal close.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    time.sleep(seconds)
    for connection in silent + held:
        connection.close()


def spike(service, _, seconds):
    """Five times the load, ignoring back-pressure; returns the number of acknowledged spans."""
    senders = load(service.grpc, 100_000, "--persist", seconds=max(1, int(seconds)), in_flight=8)
    spans = senders.answer()["spans"]
    senders.child.wait()
    return spans


def slow_client(service, _, seconds):
    """Sends one byte at a time."""
    with connect(service.http) as connection:
        head = b"POST /v1/traces HTTP/1.1\r\nhost: t\r\ncontent-length: 40\r\n\r\n"
        end = time.monotonic() + seconds
        for byte in head:
            if time.monotonic() > end:
                return
            connection.sendall(bytes([byte]))
            time.sleep(0.05)


ALL = {fault.__name__: fault for fault in (
    backend_down, backend_hangs, backend_resets, stopped, reload_valid, reload_invalid, hostile,
    spike, slow_client)}


def faketime():
    """libfaketime from Debian's package, unpacked but not installed."""
    folder = LOGS / "faketime"
    if not any(folder.rglob("libfaketimeMT.so.1")):
        folder.mkdir(exist_ok=True)
        # apt's own user could not write into a folder of root's.
        command = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", "libfaketime"]
        subprocess.run(command, cwd=folder, check=True)
        subprocess.run(["dpkg", "-x", next(folder.glob("*.deb")), folder], check=True)
    return next(folder.rglob("libfaketimeMT.so.1"))


class ConfigMap:
    """A policy file behind two symbolic links, swapped as Kubernetes does."""

    def __init__(self, service):
        self.service = service
        self.folder = service.config.with_suffix(".d")
        self.folder.mkdir(exist_ok=True)
        self.swap(0, True)
        link = self.folder / "policies.toml"
        link.unlink(missing_ok=True)
        link.symlink_to("..data/policies.toml")
        head = service.head.replace("[sampling]", f'[sampling]\npolicy_files = ["{link}"]')
        service.config.write_text(head + service.policies)

    def swap(self, number, is_valid):
        text = f'[[policy]]\nname = "v{number % 10}"\ntype = "span_count"\nmin_spans = 10000\n'
        if not is_valid:
            # Cut short, or with a mistake.
            text = text[:len(text) - 12] if number % 4 == 1 else text.replace("min", "mim")
        version = self.folder / f"..{number}"
        version.mkdir(exist_ok=True)
        (version / "policies.toml").write_text(text)
        temporary = self.folder / "..data_tmp"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(version.name)
        before = self.folder / "..data"
        old = Path(os.readlink(before)) if before.is_symlink() else None
        temporary.rename(before)
        if old and old.name != version.name:
            for file in (self.folder / old).iterdir():
                file.unlink()
            (self.folder / old).rmdir()
