"""The chart as Helm's own engine sees it: every example lints and renders, and says what it should."""

from pathlib import Path
from typing import Any

import helm_python
import pytest
from helm.rendering import CHART, EXAMPLES, NAMESPACE, RELEASE, Rendered, example, render, values_of, with_values

import outrider

KINDS = (
    "RayCluster",
    "Deployment",
    "Service",
    "ServiceAccount",
    "Role",
    "RoleBinding",
    "NetworkPolicy",
    "PodDisruptionBudget",
    "HorizontalPodAutoscaler",
    "PodMonitor",
    "PrometheusRule",
    "ConfigMap",
    "Job",
    "Pod",
    "Ingress",
    "HTTPRoute",
    "InferencePool",
    "ScaledObject",
)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_every_example_is_clean_under_strict_lint(name: str) -> None:
    result = helm_python.lint(str(CHART), values_of(name), strict=True)

    assert result["total_charts_linted"] == 1
    assert [*result["errors"], *result["messages"]] == [
        {"severity": 1, "path": "Chart.yaml", "error": "icon is recommended"}  # a remark; there is no icon
    ]


def test_across_the_examples_every_kind_is_rendered() -> None:
    kinds = {one["kind"] for name in EXAMPLES for one in example(name).objects}

    assert kinds >= set(KINDS)


def test_names_are_unique_and_fit_and_every_object_is_labelled(rendered: Rendered) -> None:
    names = [(one["kind"], one["metadata"]["name"]) for one in rendered.objects]

    assert len(names) == len(set(names))
    assert all(len(name) <= 63 for _, name in names)
    for one in rendered.objects:
        labels = one["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == RELEASE, one["metadata"]["name"]
        assert labels["app.kubernetes.io/name"] == "outrider"
        assert labels["app.kubernetes.io/managed-by"] == "Helm"


def test_a_long_release_name_keeps_every_name_within_kuberays_limits() -> None:
    rendered = render(release="a-release-name-that-is-as-long-as-helm-takes-it-53-ch")

    name = rendered.one("RayCluster")["metadata"]["name"]
    assert len(name) <= 40
    assert all(len(one["metadata"]["name"]) <= 63 for one in rendered.objects)


def test_notes_say_what_to_do_next(rendered: Rendered) -> None:
    for words in (
        "create secret generic",
        "get raycluster,pods",
        f"helm -n {NAMESPACE} test {RELEASE}",
        "outrider generate",
    ):
        assert words in rendered.notes
    assert "<no value>" not in rendered.notes


def test_notes_warn_of_an_open_door() -> None:
    assert "WARNING: every client that reaches a gateway" in example("defaults").notes
    assert "sent unencrypted" in render({"auth": {"existingSecret": "t"}, "test": {"enabled": False}}).notes
    assert "WARNING" not in example("mutual-tls").notes
    assert "never run this beside" in render({"networkPolicy": {"enabled": False}}).notes


def test_the_charts_versions_are_the_packages() -> None:
    chart = (CHART / "Chart.yaml").read_text()

    assert f'appVersion: "{outrider.__version__}"' in chart
    assert f"\nversion: {outrider.__version__}\n" in chart


def test_a_model_replica_is_a_kuberay_replica_and_its_nodes_are_hosts() -> None:
    (group,) = example("r1-2x8-h200").one("RayCluster")["spec"]["workerGroupSpecs"]

    assert (group["replicas"], group["minReplicas"], group["maxReplicas"], group["numOfHosts"]) == (1, 1, 4, 2)
    resources = example("r1-2x8-h200").pod("worker").spec["containers"][0]["resources"]
    assert resources["limits"] == resources["requests"]
    assert resources["limits"]["nvidia.com/gpu"] == "8"
    assert resources["limits"]["rdma/hca"] == "8"


def test_the_head_offers_no_cpu_and_no_gpu_for_work(rendered: Rendered) -> None:
    params = rendered.one("RayCluster")["spec"]["headGroupSpec"]["rayStartParams"]

    assert (params["num-cpus"], params["num-gpus"]) == ("0", "0")
    assert "nvidia.com/gpu" not in str(rendered.pod("head").spec)


def test_ray_is_told_how_many_cores_and_gpus_a_worker_has(rendered: Rendered) -> None:
    (group,) = rendered.one("RayCluster")["spec"]["workerGroupSpecs"]
    limits = rendered.pod("worker").spec["containers"][0]["resources"]["limits"]

    assert group["rayStartParams"]["num-cpus"] == limits["cpu"]
    assert group["rayStartParams"]["num-gpus"] == limits.get("nvidia.com/gpu", "0")


def test_gateways_stand_outside_the_ray_pods_and_are_spread_and_kept(rendered: Rendered) -> None:
    gateway = rendered.pod("gateway")

    assert [one["name"] for one in gateway.spec["containers"]] == ["gateway"]
    assert gateway.spec["topologySpreadConstraints"][0]["topologyKey"] == "kubernetes.io/hostname"


def test_with_autoscaling_the_deployment_leaves_the_number_to_the_autoscaler() -> None:
    rendered = example("r1-2x8-h200")

    assert "replicas" not in rendered.one("Deployment")["spec"]
    scaler = rendered.one("HorizontalPodAutoscaler")["spec"]
    assert scaler["scaleTargetRef"]["name"] == rendered.one("Deployment")["metadata"]["name"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (2, 8)


def test_the_gateways_service_names_the_protocol(rendered: Rendered) -> None:
    port = rendered.one("Service", "-gateway")["spec"]["ports"][0]

    assert (port["name"], port["port"], port["appProtocol"]) == ("grpc", 50051, "grpc")


@pytest.mark.parametrize(("least", "service"), [(0, {}), (1, {"service": "outrider.v1.InferenceService"})])
def test_where_there_may_be_no_replica_a_request_reaches_a_gateway_to_start_one(
    least: int, service: dict[str, str]
) -> None:
    autoscaled = {"scaling.enabled": True, "scaling.autoscale.enabled": True, "scaling.minReplicas": least}
    pod = render(with_values("defaults", {**autoscaled, "gateway.maxQueueWaitSeconds": 600})).pod("gateway")
    (gateway,) = pod.spec["containers"]

    assert gateway["readinessProbe"]["grpc"] == {"port": pod.ports()["health"], **service}
    assert gateway["command"][gateway["command"].index("--max-queue-wait-s") + 1] == "600"


def test_probes_by_grpc_health_tell_alive_from_ready(rendered: Rendered) -> None:
    (gateway,) = rendered.pod("gateway").spec["containers"]
    health = rendered.pod("gateway").ports()["health"]

    assert gateway["readinessProbe"]["grpc"] == {"port": health, "service": "outrider.v1.InferenceService"}
    assert gateway["startupProbe"]["grpc"] == gateway["livenessProbe"]["grpc"] == {"port": health}
    controller = rendered.pod("head").spec["containers"][1]
    assert {name: controller[name]["grpc"] for name in ("startupProbe", "livenessProbe")} == {
        "startupProbe": {"port": 50050},
        "livenessProbe": {"port": 50050},
    }


def test_pods_have_longer_to_end_than_what_they_do_at_their_end_takes(rendered: Rendered) -> None:
    gateway = rendered.pod("gateway").spec
    (container,) = gateway["containers"]
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    drain = int(container["command"][container["command"].index("--drain-grace-s") + 1])

    assert gateway["terminationGracePeriodSeconds"] > pause + drain
    assert rendered.pod("worker").spec["terminationGracePeriodSeconds"] > 30  # Ray's own drain
    assert rendered.pod("head").spec["terminationGracePeriodSeconds"] >= 60


def test_ray_on_the_head_ends_after_the_controller() -> None:
    head = example("defaults").pod("head").spec
    wait = head["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]

    assert "/dev/tcp/$POD_IP/50050" in wait
    assert f"seq {head['terminationGracePeriodSeconds'] // 2}" in wait


def test_the_head_may_keep_its_state_in_redis_by_reference() -> None:
    options = example("r1-2x8-h200").one("RayCluster")["spec"]["gcsFaultToleranceOptions"]

    assert options["redisAddress"] == "redis.redis.svc:6379"
    assert options["redisPassword"] == {"valueFrom": {"secretKeyRef": {"name": "redis", "key": "password"}}}
    assert "gcsFaultToleranceOptions" not in example("defaults").one("RayCluster")["spec"]


def test_pods_that_run_stay_when_theirs_change_unless_they_are_to_restart() -> None:
    def strategy(values: dict[str, Any]) -> object:
        return render(values).one("RayCluster")["spec"]["upgradeStrategy"]

    assert strategy({}) == {"type": "None"}
    assert strategy({"ray": {"upgradeStrategy": "Recreate"}}) == {"type": "Recreate"}


def test_a_changed_setting_changes_the_head_s_pod() -> None:
    def checksum(values: dict[str, Any]) -> str:
        head = render(values).one("RayCluster")["spec"]["headGroupSpec"]["template"]
        return str(head["metadata"]["annotations"]["checksum/serve"])

    assert checksum({}) != checksum({"model": {"speculation": "off"}})
    assert checksum({}) == checksum({"gateway": {"replicas": 5}})


def test_weights_of_an_object_store_are_fetched_by_a_job_and_waited_for() -> None:
    rendered = example("r1-2x8-h200")
    (fetch,) = rendered.pod("weights").containers

    assert fetch["args"] == ["s3:models/DeepSeek-R1", "/weights", "SHA256SUMS", "8", "whole"]
    for component in ("head", "worker", "gateway"):
        (wait,) = rendered.pod(component).spec["initContainers"]
        assert wait["name"] == "wait-for-weights"
        assert {"name": "WANTED", "value": "s3:models/DeepSeek-R1"} in wait["env"]
    other = render(with_values("r1-2x8-h200", {"weights.objectStore.url": "s3:other"}))
    assert other.one("Job")["metadata"]["name"] != rendered.one("Job")["metadata"]["name"]


def test_weights_of_a_node_cache_are_whole_on_workers_and_small_elsewhere() -> None:
    rendered = example("r1-4x8-h100-dp")

    for component, part, kind in (
        ("worker", "whole", "hostPath"),
        ("head", "small", "emptyDir"),
        ("gateway", "small", "emptyDir"),
    ):
        pod = rendered.pod(component)
        assert pod.spec["initContainers"][0]["args"][-1] == part
        assert kind in next(one for one in pod.spec["volumes"] if one["name"] == "weights")
    assert "Job" not in {one["kind"] for one in rendered.objects}


def test_what_is_passed_through_arrives() -> None:
    extra = {
        "nodeSelector": {"disk": "nvme"},
        "tolerations": [{"key": "k", "operator": "Exists"}],
        "affinity": {"podAntiAffinity": {}},
        "priorityClassName": "high",
        "podLabels": {"team": "x"},
        "podAnnotations": {"note": "y"},
        "extraEnv": [{"name": "A", "value": "b"}],
        "extraVolumes": [{"name": "v", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "v", "mountPath": "/v"}],
    }
    rendered = render(dict.fromkeys(("head", "workers", "gateway"), extra))

    for component in ("head", "worker", "gateway"):
        pod = rendered.pod(component)
        for key in ("nodeSelector", "tolerations", "affinity", "priorityClassName"):
            assert pod.spec[key] == extra[key]
        assert pod.labels["team"] == "x"
        assert {"name": "v", "emptyDir": {}} in pod.spec["volumes"]
        assert {"name": "A", "value": "b"} in pod.spec["containers"][0]["env"]
        assert {"name": "v", "mountPath": "/v"} in pod.spec["containers"][0]["volumeMounts"]


def test_extra_objects_are_rendered_with_the_releases_context() -> None:
    extra = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{{ .Release.Name }}-extra"}}

    assert render({"extraObjects": [extra]}).one("ConfigMap", "-extra")["metadata"]["name"] == "outrider-extra"


def test_every_example_says_what_it_is_for() -> None:
    for path in EXAMPLES.values():
        assert path is None or Path(path).read_text().startswith("# ")
