"""Renders the chart, and finds things in what comes out."""

import copy
import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import helm_python
import yaml

CHART = Path(__file__).resolve().parents[2] / "helm" / "outrider"
NAMESPACE = "serving"
RELEASE = "outrider"
EXAMPLES = {
    "defaults": None,
    **{path.name.removesuffix("-values.yaml"): path for path in (CHART / "ci").glob("*.yaml")},
}

Object = dict[str, Any]
LONG_RUNNING = ("Deployment", "RayCluster head", "RayCluster worker")


class RenderError(Exception):
    """Helm's own words."""


@dataclass(frozen=True)
class Pod:
    """A pod, or the template of one."""

    kind: str
    labels: Mapping[str, str]
    spec: Object

    @property
    def component(self) -> str:
        return self.labels["app.kubernetes.io/component"]

    @property
    def containers(self) -> list[Object]:
        """The init containers too."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def long_running(self) -> bool:
        return self.kind in LONG_RUNNING

    def ports(self) -> dict[str, int]:
        return {port["name"]: port["containerPort"] for one in self.containers for port in one.get("ports", [])}


@dataclass(frozen=True)
class Rendered:
    """What one set of values becomes."""

    objects: list[Object]
    notes: str

    def of(self, kind: str) -> list[Object]:
        return [one for one in self.objects if one["kind"] == kind]

    def one(self, kind: str, name: str = "") -> Object:
        """The only object of that kind whose name ends so."""
        (found,) = [one for one in self.of(kind) if one["metadata"]["name"].endswith(name)]
        return found

    def pods(self) -> list[Pod]:
        return list(_pods(self.objects))

    def pod(self, component: str) -> Pod:
        (found,) = [pod for pod in self.pods() if pod.component == component]
        return found

    def containers(self) -> Iterator[tuple[str, Object]]:
        for pod in self.pods():
            for container in pod.containers:
                yield f"{pod.component}/{container['name']}", container

    def policy(self, component: str) -> Object:
        return self.one("NetworkPolicy", f"-{component}")["spec"]

    def serve_settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = yaml.safe_load(self.one("ConfigMap", "-serve")["data"]["serve.yaml"])
        return settings


def _pods(objects: list[Object]) -> Iterator[Pod]:
    for one in objects:
        if one["kind"] == "Pod":
            yield Pod("Pod", one["metadata"]["labels"], one["spec"])
        elif one["kind"] in ("Deployment", "Job"):
            template = one["spec"]["template"]
            yield Pod(one["kind"], template["metadata"]["labels"], template["spec"])
        elif one["kind"] == "RayCluster":
            head = one["spec"]["headGroupSpec"]["template"]
            yield Pod("RayCluster head", head["metadata"]["labels"], head["spec"])
            for group in one["spec"]["workerGroupSpecs"]:
                template = group["template"]
                yield Pod("RayCluster worker", template["metadata"]["labels"], template["spec"])


def values_of(name: str) -> Object:
    path = EXAMPLES[name]
    return yaml.safe_load(path.read_text()) if path else {}


@functools.cache
def example(name: str) -> Rendered:
    return render(values_of(name))


def render(values: Mapping[str, Any] | None = None, release: str = RELEASE) -> Rendered:
    """RenderError if Helm refuses the values."""
    try:
        files = helm_python.Chart.load(str(CHART)).render(dict(values or {}), name=release, namespace=NAMESPACE)
    except Exception as error:
        raise RenderError(str(error)) from error
    texts = [text for path, text in files.items() if path.endswith(".yaml")]
    objects = [one for text in texts for one in yaml.safe_load_all(text) if one]
    notes = "".join(text for path, text in files.items() if path.endswith("NOTES.txt"))
    return Rendered(objects=json.loads(json.dumps(objects)), notes=notes)


def with_values(name: str, changes: Mapping[str, Any]) -> Object:
    """An example's values with some changed: {"a.b": value}."""
    values = copy.deepcopy(values_of(name))
    for path, value in changes.items():
        *parents, last = path.split(".")
        place = values
        for key in parents:
            place = place.setdefault(key, {})
        place[last] = value
    return values
