"""Policies and settings in Tailwater's configuration: TOML."""

import json
from pathlib import Path
from typing import Any

SETTINGS = """\
shutdown_timeout = "20s"
receiver.grpc.endpoint = "127.0.0.1:{grpc}"
receiver.http.endpoint = "127.0.0.1:{http}"
telemetry.endpoint = "127.0.0.1:{telemetry}"
exporter.otlp.endpoint = "http://127.0.0.1:{sink}"

[sampling]
decision_wait = "{wait_s}s"
decision_wait_after_root_received = "0s"
memory_limit_mib = 64
"""


def write_config(path: Path, policies: list[dict], wait_s: float, **ports: int) -> None:
    tables = "".join(f"\n[[policy]]\n{keys(policy)}" for policy in policies)
    path.write_text(SETTINGS.format(wait_s=wait_s, **ports) + tables)


def keys(policy: dict) -> str:
    return "".join(f"{key} = {toml(value)}\n" for key, value in policy.items())


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(part)}" for key, part in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    # TOML writes these in the same way as JSON.
    return json.dumps(value, ensure_ascii=False)
