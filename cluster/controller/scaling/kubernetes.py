"""The machine provider on Kubernetes: patches one worker group of a RayCluster, and reads the scale of a Deployment.

One model replica is one replica of the worker group. Needs only the rights to read and patch these objects by name.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import kubernetes
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from outrider.cluster.controller.scaling.machines import Need
from outrider.workers.types.errors import OutriderError

GROUP, VERSION, PLURAL = "ray.io", "v1", "rayclusters"
TIMEOUT_S = 10.0
JSON_PATCH = "application/json-patch+json"


def connect() -> kubernetes.client.CustomObjectsApi:
    _load("kubernetes_ray_cluster")
    return kubernetes.client.CustomObjectsApi()


def connect_to_deployments() -> kubernetes.client.AppsV1Api:
    _load("kubernetes_scale_deployment")
    return kubernetes.client.AppsV1Api()


def _load(setting: str) -> None:
    """Loads the pod's service account, or outside a cluster the user's kubeconfig."""
    try:
        kubernetes.config.load_incluster_config()
    except kubernetes.config.ConfigException:
        try:
            kubernetes.config.load_kube_config()
        except kubernetes.config.ConfigException as error:
            raise OutriderError(f"{setting} is set, but Kubernetes cannot be accessed: {error}") from error


class RayClusterMachines:
    """Implements MachineProvider."""

    def __init__(self, api: kubernetes.client.CustomObjectsApi, ray_cluster: str, worker_group: str) -> None:
        """`ray_cluster`: NAMESPACE/NAME."""
        self._api, self._group = api, worker_group
        self._namespace, _, self._name = ray_cluster.partition("/")

    def provide(self, need: Need) -> None:
        """Sets the group's replicas. When it shrinks, KubeRay deletes only pods of unused hosts."""
        try:
            cluster: Any = self._api.get_namespaced_custom_object(**self._address(), _request_timeout=TIMEOUT_S)
            operations = patch(cluster, self._group, need)
            if operations:
                self._api.patch_namespaced_custom_object(
                    **self._address(), body=operations, _content_type=JSON_PATCH, _request_timeout=TIMEOUT_S
                )
        except ApiException as error:
            raise OutriderError(f"{self._label()}: Kubernetes answered {error.status} {error.reason}") from error
        except HTTPError as error:
            raise OutriderError(f"{self._label()}: Kubernetes does not answer: {error}") from error
        except ValueError as error:
            raise OutriderError(f"{self._label()}: {error}") from error

    def _address(self) -> dict[str, Any]:
        return {"group": GROUP, "version": VERSION, "namespace": self._namespace, "plural": PLURAL, "name": self._name}

    def _label(self) -> str:
        return f"RayCluster {self._namespace}/{self._name}"


class DeploymentScale:
    """Implements WantedReplicas: the desired number of pods of a Deployment."""

    def __init__(self, api: kubernetes.client.AppsV1Api, deployment: str) -> None:
        """`deployment`: NAMESPACE/NAME."""
        self._api, self._deployment = api, deployment
        self._namespace, _, self._name = deployment.partition("/")

    def read(self) -> int:
        try:
            scale: Any = self._api.read_namespaced_deployment_scale(
                self._name, self._namespace, _request_timeout=TIMEOUT_S
            )
        except ApiException as error:
            answer = f"Kubernetes answered {error.status} {error.reason}"
            raise OutriderError(f"Deployment {self._deployment}: {answer}") from error
        except HTTPError as error:
            raise OutriderError(f"Deployment {self._deployment}: Kubernetes does not answer: {error}") from error
        return int(scale.spec.replicas or 0)


def patch(cluster: Mapping[str, Any], worker_group: str, need: Need) -> list[dict[str, Any]]:
    """The JSON patch that sets the worker group's replicas; empty if nothing changes.

    Raises ValueError if the group does not exist, if its maximum is lower, or if Ray's autoscaler controls it.
    """
    spec = cluster.get("spec", {})
    if spec.get("enableInTreeAutoscaling"):
        raise ValueError("enableInTreeAutoscaling is on, so Ray sets the replicas: leave kubernetes_ray_cluster unset")
    index, group = _find(spec.get("workerGroupSpecs", ()), worker_group)
    most = group.get("maxReplicas")
    if most is not None and need.replicas > most:
        raise ValueError(f"worker group {worker_group} may have {most} replicas, and {need.replicas} are wanted")
    path = f"/spec/workerGroupSpecs/{index}"
    now = group.get("replicas", 0)
    if now == need.replicas:
        return []
    going = list(need.unused_hosts) if need.replicas < now else []
    return [
        {
            "op": "test",
            "path": f"{path}/groupName",
            "value": worker_group,
        },  # the list may have changed since it was read
        {"op": "add", "path": f"{path}/replicas", "value": need.replicas},
        {"op": "add", "path": f"{path}/scaleStrategy", "value": {"workersToDelete": going}},
    ]


def _find(groups: Sequence[Mapping[str, Any]], name: str) -> tuple[int, Mapping[str, Any]]:
    for index, group in enumerate(groups):
        if group.get("groupName") == name:
            return index, group
    names = ", ".join(str(group.get("groupName")) for group in groups) or "none"
    raise ValueError(f"no worker group {name!r}: there are {names}")
