"""Renders the chart with every file of values and checks what comes out.

`run.sh` installs the tools for this.

- values/: must render, pass Kubernetes' schemas, and give a configuration that `tailwater check`
  takes.
- bad/: must not render; the first line is part of the words that must say why.
- refused/: renders, but `tailwater check` refuses the configuration or the policies with the words
  of the first line. It shows that a policy with a mistake in values/ would fail.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import chart
import kube

sys.path.insert(0, str(chart.HERE.parent / "real"))

from running import Report  # noqa: E402

# The error of a binary for a section whose feature it was built without.
NOT_BUILT = ("--features kafka",)


def write_configuration(objects: list[dict], folder: Path) -> Path:
    """The files as the pod sees them below /etc/tailwater; the configuration among them."""
    for one in kube.of_kind(objects, "ConfigMap"):
        name = one["metadata"]["name"]
        place = name.rpartition("-")[2]
        if place not in ("config", "policies") or "-dashboard-" in name:
            continue
        (folder / place).mkdir(parents=True)
        for name, text in one["data"].items():
            # Files of Secrets are those that `make_secrets` has made.
            (folder / place / name).write_text(text.replace("/etc/tailwater/", f"{folder}/"))
    return folder / "config/tailwater.toml"


def make_secrets(folder: Path) -> None:
    (folder / "tls").mkdir(parents=True)
    (folder / "tls/token").write_text("a-token\n")
    (folder / "tls/token").chmod(0o600)
    (folder / "tls/more").mkdir()
    (folder / "tls/more/more.toml").write_text('[[policy]]\nname="mounted"\ntype="always_sample"\n')
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 90"
    files = ("-keyout", folder / "tls/tls.key", "-out", folder / "tls/tls.crt")
    names = ("-subj", "/CN=tailwater", "-addext", "subjectAltName=DNS:tailwater")
    subprocess.run([*command.split(), *files, *names], capture_output=True, check=True)


def refusals(tailwater: Path, objects: list[dict], folder: Path) -> list[str]:
    """The output of `tailwater check` for a rendered configuration and its policies."""
    make_secrets(folder)
    config = write_configuration(objects, folder)
    done = subprocess.run(
        [tailwater, "check", "--format", "json", config],
        # As the pod has it.
        env=os.environ | {"HOSTNAME": "tailwater-0"},
        capture_output=True,
        text=True,
        check=False,
    )
    return [
        f"{Path(one['file']).relative_to(folder)}:{one['line']}:{one['column']}: "
        f"{one['severity']}: {one['message']}"
        for one in json.loads(done.stdout)["diagnostics"]
        if not any(words in f"{one['message']} {one['hint']}" for words in NOT_BUILT)
    ]


def check_numbers(objects: list[dict]) -> list[str]:
    """The pod's limit holds the memory limit, and the kubelet waits for the shutdown."""
    maps = kube.of_kind(objects, "ConfigMap")
    (text,) = (one["data"]["tailwater.toml"] for one in maps if "tailwater.toml" in one["data"])
    config = tomllib.loads(text)
    memory = kube.container(objects)["resources"]["limits"]["memory"]
    units = {"Mi": 1, "Gi": 1024}
    mib = int(memory[:-2]) * units[memory[-2:]]
    problems = []
    if config["sampling"]["memory_limit_mib"] > mib * 0.85:
        problems.append(f"memory_limit_mib = {config['sampling']['memory_limit_mib']} in {memory}")
    shutdown = {"30s": 30, "1m 30s": 90}[config.get("shutdown_timeout", "30s")]
    pod = kube.workload(objects)["spec"]["template"]["spec"]
    if pod["terminationGracePeriodSeconds"] < shutdown + 10:
        problems.append(f"the grace period is {pod['terminationGracePeriodSeconds']} s")
    watched = config["sampling"].get("watch_policy_files", False)
    if watched != ("policy_files" in config["sampling"]):
        problems.append("policy files are not watched")
    return problems


def check_collector(collector: Path, objects: list[dict], folder: Path) -> list[str]:
    for one in kube.of_kind(objects, "ConfigMap"):
        if "collector.yaml" in one["data"]:
            file = folder / "collector.yaml"
            file.write_text(one["data"]["collector.yaml"])
            done = subprocess.run(
                [collector, "validate", f"--config={file}"],
                capture_output=True,
                text=True,
                check=False,
            )
            return [done.stderr] if done.returncode else []
    return []


def check_values(arguments: argparse.Namespace, values: Path) -> list[str]:
    rendered, text, errors = chart.template(arguments.helm, values)
    if not rendered:
        return [errors]
    folder = arguments.folder / values.stem
    folder.mkdir()
    (folder / "rendered.yaml").write_text(text)
    objects = chart.objects(text)
    problems = [
        *kube.schemas(objects, arguments.crds),
        *kube.references(objects),
        *kube.hardening(objects),
        *check_numbers(objects),
        *refusals(arguments.tailwater, objects, folder),
        *check_collector(arguments.collector, objects, folder),
    ]
    if kube.of_kind(objects, "PrometheusRule"):
        problems += kube.dashboards(objects, chart.REPOSITORY / "deploy")
    return problems


def first_line(values: Path) -> str:
    return values.read_text().splitlines()[0].removeprefix("# ")


def check_bad(arguments: argparse.Namespace, values: Path) -> list[str]:
    rendered, _, errors = chart.template(arguments.helm, values)
    if rendered:
        return ["it renders"]
    return [] if first_line(values) in errors else [f"it says instead: {errors}"]


def check_refused(arguments: argparse.Namespace, values: Path) -> list[str]:
    rendered, text, errors = chart.template(arguments.helm, values)
    if not rendered:
        return [errors]
    folder = arguments.folder / f"refused-{values.stem}"
    said = refusals(arguments.tailwater, chart.objects(text), folder)
    return [] if any(first_line(values) in one for one in said) else [f"check says: {said}"]


def check_workloads(arguments: argparse.Namespace) -> list[str]:
    """A StatefulSet where a pod must come back as itself, otherwise a Deployment."""
    wanted = {
        "default": "Deployment",
        "collector": "Deployment",
        "sidecar": "Deployment",
        "durable": "StatefulSet",
        "kafka": "StatefulSet",
    }
    problems = []
    for name, kind in wanted.items():
        _, text, _ = chart.template(arguments.helm, chart.HERE / f"values/{name}.yaml")
        got = kube.workload(chart.objects(text))["kind"]
        if got != kind:
            problems.append(f"{name} is a {got}")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("tailwater", "helm", "collector", "crds", "folder"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    arguments = parser.parse_args()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    arguments.folder.mkdir(parents=True)

    report = Report()
    passed, output, errors = chart.helm(arguments.helm, "lint", "--strict", chart.CHART)
    report.check("helm lint", [] if passed else [output + errors])
    report.check("links and manifests are up to date", chart.compare(arguments.helm))
    report.check("Deployments and StatefulSets", check_workloads(arguments))
    checks = {"values": check_values, "bad": check_bad, "refused": check_refused}
    for folder, check in checks.items():
        found = sorted((chart.HERE / folder).glob("*.yaml"))
        assert found, folder
        for values in found:
            report.check(f"{folder}/{values.name}", check(arguments, values))
    return report.summary()


if __name__ == "__main__":
    sys.exit(main())
