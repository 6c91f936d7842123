"""Checks the objects of one rendered chart."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import kubernetes_validate
import yaml

MONITORING = {"ServiceMonitor": "servicemonitors", "PrometheusRule": "prometheusrules"}


def of_kind(objects: list[dict], *kinds: str) -> list[dict]:
    return [one for one in objects if one["kind"] in kinds]


def workload(objects: list[dict]) -> dict:
    (found,) = (
        one
        for one in of_kind(objects, "Deployment", "StatefulSet")
        if not one["metadata"]["name"].endswith("-collector")
    )
    return found


def container(objects: list[dict]) -> dict:
    spec = workload(objects)["spec"]["template"]["spec"]
    (found,) = (
        one
        for one in spec["containers"] + spec.get("initContainers", [])
        if one["name"] == "tailwater"
    )
    return found


def schemas(objects: list[dict], crds: Path) -> list[str]:
    """Each object under Kubernetes' schemas, in which an unknown field is an error."""
    problems = []
    for one in objects:
        name = f"{one['kind']} {one['metadata']['name']}"
        try:
            if one["kind"] in MONITORING:
                plural = MONITORING[one["kind"]]
                text = (crds / f"monitoring.coreos.com_{plural}.yaml").read_text()
                schema = yaml.safe_load(text)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
                jsonschema.validate(one, closed(schema))
            else:
                kubernetes_validate.validate(one, "1.37", strict=True)
        except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
            problems.append(f"{name}: {error.message}")
    return problems


def closed(schema: dict) -> dict:
    """The schema of a custom resource, with unknown fields as errors.

    Moves the flags of Go's expressions to the place where Python expects them.
    """
    if "pattern" in schema:
        return {**schema, "pattern": schema["pattern"].replace("^(?i)", "(?i)^")}
    if "properties" in schema:
        parts = {key: closed(part) for key, part in schema["properties"].items()}
        return {"additionalProperties": "metadata" in parts, **schema, "properties": parts}
    if "items" in schema:
        return {**schema, "items": closed(schema["items"])}
    return schema


def matches(selector: dict, labels: dict) -> bool:
    return selector.items() <= labels.items()


def references(objects: list[dict]) -> Iterator[str]:
    """Names that come twice, selectors of nothing, and volumes of objects that do not exist."""
    names = Counter((one["kind"], one["metadata"]["name"]) for one in objects)
    yield from (f"{kind} {name} comes {n} times" for (kind, name), n in names.items() if n > 1)
    workloads = of_kind(objects, "Deployment", "StatefulSet")
    pods = [one["spec"]["template"] for one in workloads]
    labels = [pod["metadata"]["labels"] for pod in pods]
    selectors = {
        "Service": lambda spec: spec["selector"],
        "PodDisruptionBudget": lambda spec: spec["selector"]["matchLabels"],
        "NetworkPolicy": lambda spec: spec["podSelector"]["matchLabels"],
        "Deployment": lambda spec: spec["selector"]["matchLabels"],
        "StatefulSet": lambda spec: spec["selector"]["matchLabels"],
    }
    for one in of_kind(objects, *selectors):
        selector = selectors[one["kind"]](one["spec"])
        if sum(matches(selector, each) for each in labels) != 1:
            name = f"{one['kind']} {one['metadata']['name']}"
            yield f"{name} does not select the pods of one workload"
    for one in of_kind(objects, "ServiceMonitor"):
        selector = one["spec"]["selector"]["matchLabels"]
        services = of_kind(objects, "Service")
        if sum(matches(selector, service["metadata"]["labels"]) for service in services) != 1:
            yield "the ServiceMonitor does not select one Service"
    for one in of_kind(objects, "HorizontalPodAutoscaler"):
        target = one["spec"]["scaleTargetRef"]
        if (target["kind"], target["name"]) not in {
            (each["kind"], each["metadata"]["name"]) for each in workloads
        }:
            yield f"nothing is the target of the autoscaler: {target}"
    maps = {one["metadata"]["name"] for one in of_kind(objects, "ConfigMap")}
    accounts = {one["metadata"]["name"] for one in of_kind(objects, "ServiceAccount")}
    services = {one["metadata"]["name"] for one in of_kind(objects, "Service")}
    for one in workloads:
        spec = one["spec"]["template"]["spec"]
        for volume in spec.get("volumes", []):
            if "configMap" in volume and volume["configMap"]["name"] not in maps:
                yield f"there is no ConfigMap {volume['configMap']['name']}"
        if accounts and spec["serviceAccountName"] not in accounts:
            yield f"there is no ServiceAccount {spec['serviceAccountName']}"
        if one["kind"] == "StatefulSet" and one["spec"]["serviceName"] not in services:
            yield f"there is no Service {one['spec']['serviceName']}"


def hardening(objects: list[dict]) -> Iterator[str]:
    """Not root, a read-only root, no capability; probes that Tailwater answers."""
    one = container(objects)
    context = one["securityContext"]
    wanted = {
        "runAsNonRoot": True,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    for key, value in wanted.items():
        if context.get(key) != value:
            yield f"securityContext.{key} is {context.get(key)}"
    probes = {
        "livenessProbe": "/-/healthy",
        "startupProbe": "/-/healthy",
        "readinessProbe": "/-/ready",
    }
    for probe, path in probes.items():
        if one[probe]["httpGet"]["path"] != path:
            yield f"{probe} asks {one[probe]['httpGet']['path']}"


def dashboards(objects: list[dict], folder: Path) -> Iterator[str]:
    """Dashboards and alerts come through the chart as they are in the repository."""
    maps = of_kind(objects, "ConfigMap")
    for path in sorted((folder / "grafana/dashboards").glob("*.json")):
        found = [one["data"].get(f"tailwater-{path.name}") for one in maps]
        if [json.loads(text) for text in found if text] != [json.loads(path.read_text())]:
            yield f"{path.name} is not in a ConfigMap as it is"
    (rule,) = of_kind(objects, "PrometheusRule")
    if rule["spec"] != yaml.safe_load((folder / "prometheus/tailwater-alerts.yml").read_text()):
        yield "the PrometheusRule is not tailwater-alerts.yml"
