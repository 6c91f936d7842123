"""Checks the files of deploy/compose, and runs what they describe as processes.

`run.sh` installs the tools for this. A Tempo cannot be had from the package registries: its file is
only read as YAML, and a sink stands in its place.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

HERE = Path(__file__).resolve().parent
COMPOSE = HERE.parent.parent / "deploy/compose"
sys.path.insert(0, str(HERE.parent / "real"))

import live  # noqa: E402
from running import Report  # noqa: E402

# The listeners inside the containers.
PORTS = {
    "checkout": {8080},
    "collector": {4317, 4318},
    "tailwater": {4317, 4318, 9464},
    "tempo": {4317, 3200},
    "prometheus": {9090},
    "grafana": {3000},
}


def load(name: str) -> Any:
    return yaml.safe_load((COMPOSE / name).read_text())


def command(*parts: Any) -> list[str]:
    """The output of a command that fails."""
    done = subprocess.run(
        [str(part) for part in parts], capture_output=True, text=True, check=False
    )
    return [done.stdout + done.stderr] if done.returncode else []


def check_prometheus(promtool: Path, folder: Path) -> list[str]:
    """As the container sees it: the rules are below the configuration."""
    folder = folder / "etc-prometheus"
    folder.mkdir()
    shutil.copy(COMPOSE / "prometheus.yml", folder)
    shutil.copytree(COMPOSE.parent / "prometheus", folder / "rules")
    return command(promtool, "check", "config", folder / "prometheus.yml")


def check_mounts() -> list[str]:
    """Each file that is mounted is there, and each volume is declared."""
    compose = load("compose.yaml")
    problems = []
    for name, service in compose["services"].items():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("."):
                missing = not (COMPOSE / source).exists()
            else:
                missing = source not in compose["volumes"]
            if missing:
                problems.append(f"{name} mounts {source}, which is not there")
        build = service.get("build")
        if isinstance(build, str) and not (COMPOSE / build / "Dockerfile").exists():
            problems.append(f"{name} is built from {build}, which has no Dockerfile")
        if (
            isinstance(build, dict)
            and not (COMPOSE / build["context"] / build["dockerfile"]).exists()
        ):
            problems.append(f"{name} is built from {build['dockerfile']}, which is not there")
        for other in service.get("depends_on", []):
            if other not in compose["services"]:
                problems.append(f"{name} depends on {other}, which is not a service")
    return problems


def addresses() -> dict[str, str]:
    """Every address by which one container calls another, by where it is written."""
    services = load("compose.yaml")["services"]
    found = {
        f"{name}: {key}": value
        for name, service in services.items()
        for key, value in service.get("environment", {}).items()
        if str(value).startswith("http://")
    }
    exporters = load("collector.yaml")["exporters"]
    found |= {name: f"http://{one['endpoint']}" for name, one in exporters.items()}
    found["tailwater"] = live.configuration()["exporter"]["otlp"]["endpoint"]
    for job in load("prometheus.yml")["scrape_configs"]:
        for target in job["static_configs"][0]["targets"]:
            found[job["job_name"]] = f"http://{target}"
    for source in load("grafana/provisioning/datasources/datasources.yaml")["datasources"]:
        found[source["name"]] = source["url"]
    return found


def check_addresses() -> list[str]:
    problems = []
    for place, address in addresses().items():
        url = urlsplit(address)
        if url.port not in PORTS.get(url.hostname or "", set()):
            problems.append(f"{place}: nothing listens on {address}")
    return problems


def check_grafana() -> list[str]:
    """The data sources and the dashboards that are provisioned are those that are asked for."""
    problems = []
    sources = load("grafana/provisioning/datasources/datasources.yaml")["datasources"]
    uids = {one["uid"] for one in sources}
    (prometheus,) = (one for one in sources if one["type"] == "prometheus")
    # The dashboards have a variable for the data source, which begins with the default one.
    if not prometheus.get("isDefault"):
        problems.append("Prometheus is not the default data source")
    for one in prometheus["jsonData"]["exemplarTraceIdDestinations"]:
        if one["datasourceUid"] not in uids:
            problems.append(f"exemplars lead to {one['datasourceUid']}, which is not a data source")
    grafana = load("compose.yaml")["services"]["grafana"]
    mounts = dict(mount.split(":")[:2][::-1] for mount in grafana["volumes"])
    (provider,) = load("grafana/provisioning/dashboards/dashboards.yaml")["providers"]
    dashboards = COMPOSE / mounts[provider["options"]["path"]]
    found = {path.name: yaml.safe_load(path.read_text()) for path in dashboards.glob("*.json")}
    wanted = {f"tailwater-{name}" for name in ("overview", "policies", "resources", "span-metrics")}
    if {one["uid"] for one in found.values()} != wanted:
        problems.append(f"the dashboards are {sorted(one['uid'] for one in found.values())}")
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    if str(home.parent) != provider["options"]["path"] or home.name not in found:
        problems.append(f"the first dashboard is {home}, which is not there")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("tailwater", "collector", "prometheus", "promtool", "gateway", "folder"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    arguments = parser.parse_args()
    folder = arguments.folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)

    report = Report()
    schema = (
        Path(sys.executable).with_name("check-jsonschema"),
        "--builtin-schema",
        "vendor.compose-spec",
    )
    report.check(
        "compose.yaml by the schema of Compose", command(*schema, COMPOSE / "compose.yaml")
    )
    report.check(
        "otelcol validate",
        command(arguments.collector, "validate", f"--config={COMPOSE / 'collector.yaml'}"),
    )
    report.check("promtool check config", check_prometheus(arguments.promtool, folder))
    report.check(
        "tailwater check",
        command(arguments.tailwater, "check", COMPOSE / "tailwater/tailwater.toml"),
    )
    report.check("tempo.yaml is YAML", [] if load("tempo.yaml")["storage"] else ["no storage"])
    report.check("mounts, builds and dependencies", check_mounts())
    report.check("every address is one that a service listens on", check_addresses())
    report.check("Grafana's data sources and dashboards", check_grafana())
    live.run(report, arguments)
    return report.summary()


if __name__ == "__main__":
    sys.exit(main())
