"""Processes that a test starts, and waiting for them.

Every wait has an end, and only what was started here is killed.
"""

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any


class TroubleError(Exception):
    """A problem that ends the test."""


class Children:
    """The processes of a run, each with its output in `<name>.log`.

    Leaving the block ends those that still run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: list[subprocess.Popen] = []

    def __enter__(self) -> "Children":
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.running:
            if child.poll() is None:
                child.kill()
                child.wait(timeout=10)

    def start(self, name: str, *command: Any, **environment: Any) -> subprocess.Popen:
        with open(self.folder / f"{name}.log", "wb") as log:
            child = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=clean_environment() | {key: str(value) for key, value in environment.items()},
            )
        self.running.append(child)
        return child

    def tail(self, name: str, lines: int = 15) -> str:
        return "\n".join(
            (self.folder / f"{name}.log").read_text(errors="replace").splitlines()[-lines:]
        )


def clean_environment() -> dict[str, str]:
    """This environment without what would redirect the SDKs: their own settings, and proxies."""
    return {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("OTEL_") and not key.lower().endswith("_proxy")
    }


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that are free now.

    All are held until the last is found, so that none comes twice.
    """
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def wait_until(what: str, probe: Callable[[], Any], seconds: float) -> Any:
    """The first truthy answer of the probe."""
    give_up = time.monotonic() + seconds
    while True:
        answer = probe()
        if answer:
            return answer
        if time.monotonic() > give_up:
            raise TroubleError(f"{what}: not within {seconds:g} s")
        time.sleep(0.05)


def get(url: str) -> tuple[int, bytes]:
    """Status and body; status 0 if nobody answers. Never through a proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return 0, b""
