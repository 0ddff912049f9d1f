"""What is rendered is valid: built-in kinds for each Kubernetes, RayCluster against KubeRay's own schema."""

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from helm.rendering import Object, Rendered, example
from ray.scripts.scripts import start

ALWAYS = ("1.25", "1.37")
SUPPORTED = tuple(f"1.{minor}" for minor in range(25, 38))
CUSTOM = ("RayCluster", "PodMonitor", "PrometheusRule", "HTTPRoute", "InferencePool", "ScaledObject")


def problems(one: Object, version: str) -> list[str]:
    """What Kubernetes would refuse in an object."""
    try:
        kubernetes_validate.validate(one, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{one['kind']}: {error.message}"]
    return []


VERSIONS = [pytest.param(v, marks=() if v in ALWAYS else pytest.mark.full) for v in SUPPORTED]


@pytest.mark.parametrize("version", VERSIONS)
def test_built_in_kinds_are_strictly_valid(rendered: Rendered, version: str) -> None:
    assert {
        problem for one in rendered.objects if one["kind"] not in CUSTOM for problem in problems(one, version)
    } == set()


@pytest.mark.parametrize("version", VERSIONS)
def test_pods_of_the_raycluster_are_strictly_valid(rendered: Rendered, version: str) -> None:
    """KubeRay's schema leaves their depth to Kubernetes': so they are checked as the pods that they become."""
    pods = [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": pod.spec} for pod in rendered.pods()]

    assert {problem for pod in pods for problem in problems(pod, version)} == set()


def test_a_field_that_no_kubernetes_knows_would_be_found() -> None:
    service = json.loads(json.dumps(example("defaults").one("Service", "-gateway")))
    service["spec"]["selectors"] = {}

    assert len(problems(service, "1.31")) == 1


def _strict(node: Any) -> Any:
    """As jsonschema takes it, and with typos caught."""
    if isinstance(node, list):
        return [_strict(one) for one in node]
    if not isinstance(node, dict):
        return node
    if node.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {key: _strict(value) for key, value in node.items()}
    if "properties" in node and not node.get("x-kubernetes-preserve-unknown-fields"):
        made["additionalProperties"] = False
    return made


@pytest.fixture(scope="session")
def raycluster_schema() -> jsonschema.Draft202012Validator:
    path = os.environ.get("RAYCLUSTER_SCHEMA", "")
    if not path:
        pytest.skip("RAYCLUSTER_SCHEMA is not set to the path of KubeRay's OpenAPI schema")
    schema = _strict(json.loads(Path(path).read_text()))
    schema["properties"].update({name: {} for name in ("apiVersion", "kind", "metadata")})
    return jsonschema.Draft202012Validator(schema)


def test_the_raycluster_follows_kuberays_schema(
    rendered: Rendered, raycluster_schema: jsonschema.Draft202012Validator
) -> None:
    errors = [
        f"{error.json_path}: {error.message}" for error in raycluster_schema.iter_errors(rendered.one("RayCluster"))
    ]

    assert errors == []


@pytest.mark.parametrize("typo", ["numOfHost", "maxReplica", "rayStartParam"])
def test_a_typo_in_the_raycluster_would_be_found(raycluster_schema: jsonschema.Draft202012Validator, typo: str) -> None:
    cluster = json.loads(json.dumps(example("defaults").one("RayCluster")))
    cluster["spec"]["workerGroupSpecs"][0][typo] = 1

    assert list(raycluster_schema.iter_errors(cluster)) != []


def _fields(cluster: Object) -> tuple[set[str], set[str], set[str]]:
    spec = cluster["spec"]
    groups = [*spec["workerGroupSpecs"]]
    return set(spec), set(spec["headGroupSpec"]), {name for group in groups for name in group}


def test_the_raycluster_uses_only_fields_that_kuberay_has(rendered: Rendered) -> None:
    """The part that runs without the schema."""
    cluster = rendered.one("RayCluster")
    spec, head, workers = _fields(cluster)

    assert cluster["apiVersion"] == "ray.io/v1"
    assert spec <= {
        "rayVersion",
        "enableInTreeAutoscaling",
        "authOptions",
        "upgradeStrategy",
        "gcsFaultToleranceOptions",
        "headGroupSpec",
        "workerGroupSpecs",
    }
    assert head == {"rayStartParams", "template"}
    assert workers == {
        "groupName",
        "replicas",
        "minReplicas",
        "maxReplicas",
        "numOfHosts",
        "rayStartParams",
        "template",
    }
    for group in cluster["spec"]["workerGroupSpecs"]:
        assert all(type(group[name]) is int for name in ("replicas", "minReplicas", "maxReplicas", "numOfHosts"))


def test_ray_knows_every_start_parameter_and_kuberay_gets_them_as_text(rendered: Rendered) -> None:
    options = {option.removeprefix("--") for parameter in start.params for option in parameter.opts}
    spec = rendered.one("RayCluster")["spec"]

    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert set(group["rayStartParams"]) <= options
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
