"""Who sets the number of replicas, who places them whole, and where a model of the Hub comes from."""

from typing import Any

import pytest
from helm.rendering import example, render, with_values

import outrider.workers.types.model.hub as hub
from outrider.cluster.gateway.observability.known_metrics import KnownMetrics
from outrider.cluster.gateway.observability.metrics import GatewayMetrics


def test_keda_scales_a_deployment_that_the_controller_follows() -> None:
    rendered = example("keda-volcano")
    scaled = rendered.one("ScaledObject")["spec"]

    deployment = rendered.one("Deployment", "-scale")
    assert scaled["scaleTargetRef"] == {"name": deployment["metadata"]["name"]}
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (1, 4)
    assert "replicas" not in deployment["spec"], "the number is KEDA's"
    settings = rendered.serve_settings()
    assert settings["kubernetes_scale_deployment"] == f"serving/{deployment['metadata']['name']}"
    assert not any(name.startswith("autoscale") for name in settings)
    (_, rule) = rendered.one("Role", "-scale")["rules"]
    assert (rule["resources"], rule["verbs"]) == (["deployments/scale"], ["get"])
    assert rule["resourceNames"] == [deployment["metadata"]["name"]]


def test_kedas_query_asks_for_metrics_that_gateways_have_by_the_label_that_monitors_give() -> None:
    rendered = example("keda-volcano")
    (trigger,) = rendered.one("ScaledObject")["spec"]["triggers"]
    metrics = GatewayMetrics()
    KnownMetrics(metrics.registry)
    known = {family.name for family in metrics.registry.collect()}

    asked = {"vllm:num_requests_running", "outrider_gateway_queued_requests"}
    assert asked <= known
    labels = [one["relabelings"] for one in rendered.one("PodMonitor", "-gateway")["spec"]["podMetricsEndpoints"]]
    assert labels == [[{"action": "replace", "targetLabel": "cluster", "replacement": "outrider"}]]
    assert all(f'{name}{{cluster="outrider"}}' in trigger["metadata"]["query"] for name in asked)
    assert trigger["metadata"]["threshold"] == "64"


def test_a_query_of_ones_own_replaces_it() -> None:
    values = with_values("keda-volcano", {"scaling.keda.query": "sum(x)"})

    assert render(values).one("ScaledObject")["spec"]["triggers"][0]["metadata"]["query"] == "sum(x)"


@pytest.mark.parametrize(
    ("scheduler", "queue", "labels"),
    [
        ("", "", {}),
        ("kueue", "q", {"kueue.x-k8s.io/queue-name": "q"}),
        ("volcano", "", {"ray.io/scheduler-name": "volcano"}),
        ("volcano", "q", {"ray.io/scheduler-name": "volcano", "volcano.sh/queue-name": "q"}),
        (
            "yunikorn",
            "root.q",
            {
                "ray.io/gang-scheduling-enabled": "true",
                "yunikorn.apache.org/app-id": "outrider",
                "yunikorn.apache.org/queue": "root.q",
            },
        ),
        ("kai", "q", {"kai.scheduler/queue": "q"}),
        ("scheduler-plugins", "", {"ray.io/gang-scheduling-enabled": "true"}),
    ],
)
def test_a_gang_scheduler_finds_its_labels_on_the_raycluster(
    scheduler: str, queue: str, labels: dict[str, str]
) -> None:
    values = {"gangScheduling": {"scheduler": scheduler, "queue": queue}}

    plain = render().one("RayCluster")["metadata"]["labels"]
    assert render(values).one("RayCluster")["metadata"]["labels"] == plain | labels


HUB = {
    "model.path": "/models/R1",
    "weights": {"source": "huggingFace", "mountPath": "/models/R1", "huggingFace": {"model": "hf://deepseek-ai/R1"}},
}


def fetching(values: dict[str, Any], component: str) -> dict[str, Any]:
    (container,) = render(values).pod(component).spec["initContainers"]
    return dict(container)


def test_workers_fetch_a_model_of_the_hub_and_others_its_small_files() -> None:
    values = with_values("defaults", HUB)

    worker, gateway, head = (fetching(values, one) for one in ("worker", "gateway", "head"))
    assert worker["command"] == ["hf", "download"]
    assert worker["args"][:3] == ["deepseek-ai/R1", "--local-dir", "/weights"]
    assert "*.safetensors" in worker["args"]
    assert gateway["args"] == head["args"] == worker["args"][:-2]
    volumes = {one["name"]: one for one in render(values).pod("worker").spec["volumes"]}
    assert volumes["weights"]["hostPath"]["type"] == "DirectoryOrCreate"
    assert "emptyDir" in {one["name"]: one for one in render(values).pod("gateway").spec["volumes"]}["weights"]


def test_a_revision_and_a_token_are_told_to_the_hub() -> None:
    container = fetching(with_values("http-ingress", {}), "worker")

    assert container["args"][1:3] == ["--revision", "main"]
    assert {"name": "HF_TOKEN_PATH", "value": "/hub/token"} in container["env"]
    volumes = {one["name"]: one for one in example("http-ingress").pod("worker").spec["volumes"]}
    assert volumes["hub-token"]["secret"]["secretName"] == "hugging-face"
    assert "hub-token" not in str(render(with_values("defaults", HUB)).pod("worker").spec)


@pytest.mark.parametrize("model", ["hf://a/b", "hf://a.b/c-d_e@v1.0", "hf://a/b@refs/pr/1"])
def test_the_charts_names_of_models_are_the_programs(model: str) -> None:
    values = with_values("defaults", {**HUB, "weights": {**HUB["weights"], "huggingFace": {"model": model}}})

    assert f"{hub.PREFIX}{fetching(values, 'worker')['args'][0]}" == model.partition("@")[0]
    assert hub.name_of(model) in model
