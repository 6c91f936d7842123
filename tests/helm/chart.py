"""Rendering the chart, and the files that must be equal to what it renders."""

import os
import subprocess
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
CHART = REPOSITORY / "deploy/helm/tailwater"
NAMESPACE = "tailwater"

# Files outside of the chart that links in it lead to, because `.Files` cannot leave the chart. Helm
# follows the links, also into a package.
LINKS = {
    "policies/default.toml": "files/default.toml",
    "deploy/prometheus/tailwater-alerts.yml": "files/tailwater-alerts.yml",
    "deploy/grafana/dashboards/overview.json": "files/dashboards/overview.json",
    "deploy/grafana/dashboards/policies.json": "files/dashboards/policies.json",
    "deploy/grafana/dashboards/resources.json": "files/dashboards/resources.json",
    "deploy/grafana/dashboards/span-metrics.json": "files/dashboards/span-metrics.json",
}
MANIFESTS = ("gateway", "sidecar")
# Lines that only mean something to Helm.
HELM_ONLY = ("helm.sh/chart:", "app.kubernetes.io/managed-by:", "# Source:")


def helm(binary: Path, *arguments: Any) -> tuple[bool, str, str]:
    """Whether it succeeded, what it printed, and its errors."""
    done = subprocess.run(
        [str(part) for part in (binary, *arguments)], capture_output=True, text=True, check=False
    )
    return done.returncode == 0, done.stdout, done.stderr


def template(binary: Path, values: Path) -> tuple[bool, str, str]:
    return helm(
        binary, "template", "tailwater", CHART, "--namespace", NAMESPACE, "--values", values
    )


def objects(text: str) -> list[dict]:
    return [part for part in yaml.safe_load_all(text) if part]


def manifest(rendered: str, name: str) -> str:
    """A rendered chart as a plain manifest."""
    lines = [line for line in rendered.splitlines() if not line.strip().startswith(HELM_ONLY)]
    # Helm leaves blank lines where a condition did not hold.
    kept = [line.rstrip() for i, line in enumerate(lines) if line.strip() or lines[i - 1].strip()]
    return (
        f"# Rendered from deploy/helm/tailwater with deploy/kubernetes/{name}.values.yaml.\n"
        f"#   kubectl create namespace {NAMESPACE}\n"
        f"#   kubectl --namespace {NAMESPACE} apply -f deploy/kubernetes/{name}.yaml\n"
        + "\n".join(kept).strip()
        + "\n"
    )


def compare(binary: Path) -> list[str]:
    """Differences between the committed files and what they are made of."""
    update = os.environ.get("UPDATE_REFERENCE") == "1"
    problems = []
    for source, link in LINKS.items():
        if (CHART / link).resolve() != REPOSITORY / source:
            problems.append(f"{CHART.relative_to(REPOSITORY) / link} is not a link to {source}")
    for name in MANIFESTS:
        folder = REPOSITORY / "deploy/kubernetes"
        _, rendered, errors = template(binary, folder / f"{name}.values.yaml")
        wanted = manifest(rendered, name)
        if update and rendered:
            (folder / f"{name}.yaml").write_text(wanted)
        if (folder / f"{name}.yaml").read_text() != wanted:
            problems.append(
                f"deploy/kubernetes/{name}.yaml is not what is rendered: run tests/helm/run.sh with"
                f" UPDATE_REFERENCE=1 {errors}"
            )
    return problems
