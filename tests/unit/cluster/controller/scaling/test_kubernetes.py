"""The RayCluster that follows the number of replicas, on a fake Kubernetes that speaks HTTP."""

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import kubernetes
import pytest
from fake_kubernetes import FakeKubernetes
from hypothesis import given
from hypothesis import strategies as st

from outrider.cluster.controller.scaling.kubernetes import RayClusterMachines, patch
from outrider.cluster.controller.scaling.machines import MachineUpdater, Need, unused
from outrider.workers.types.errors import OutriderError

PATH = "/apis/ray.io/v1/namespaces/ns/rayclusters/r1"


def a_cluster(replicas: int = 1, **spec: Any) -> dict[str, Any]:
    head = {"groupName": "cpu", "replicas": 7}
    workers = {"groupName": "workers", "replicas": replicas, "numOfHosts": 2, "minReplicas": 0, "maxReplicas": 4}
    return {"metadata": {"name": "r1", "namespace": "ns"}, "spec": {"workerGroupSpecs": [head, workers], **spec}}


def applied(cluster: dict[str, Any], operations: list[dict[str, Any]]) -> dict[str, Any]:
    """The cluster after a JSON patch of `add` and `test` within the workers' group."""
    group = {**cluster["spec"]["workerGroupSpecs"][1]}
    for operation in operations:
        prefix, _, field = operation["path"].rpartition("/")
        assert prefix == "/spec/workerGroupSpecs/1"
        if operation["op"] == "test":
            assert group[field] == operation["value"]
        else:
            assert operation["op"] == "add"
            group[field] = operation["value"]
    return {**cluster, "spec": {**cluster["spec"], "workerGroupSpecs": [cluster["spec"]["workerGroupSpecs"][0], group]}}


def workers_of(cluster: dict[str, Any]) -> dict[str, Any]:
    group: dict[str, Any] = cluster["spec"]["workerGroupSpecs"][1]
    return group


def test_more_replicas_are_asked_for_by_number() -> None:
    cluster = applied(a_cluster(1), patch(a_cluster(1), "workers", Need(replicas=3)))

    assert workers_of(cluster)["replicas"] == 3
    assert workers_of(cluster)["scaleStrategy"] == {"workersToDelete": []}
    assert cluster["spec"]["workerGroupSpecs"][0] == {"groupName": "cpu", "replicas": 7}


def test_fewer_replicas_name_the_pods_that_nobody_uses_so_that_no_other_is_deleted() -> None:
    need = Need(replicas=2, unused_hosts=("pod-3", "pod-4"))

    group = workers_of(applied(a_cluster(3), patch(a_cluster(3), "workers", need)))

    assert (group["replicas"], group["scaleStrategy"]) == (2, {"workersToDelete": ["pod-3", "pod-4"]})


@given(before=st.integers(0, 4), wanted=st.integers(0, 4))
def test_a_patch_brings_what_is_needed_and_a_second_is_empty(before: int, wanted: int) -> None:
    cluster = a_cluster(before)

    after = applied(cluster, patch(cluster, "workers", Need(replicas=wanted)))

    assert workers_of(after)["replicas"] == wanted
    assert patch(after, "workers", Need(replicas=wanted)) == []


@pytest.mark.parametrize(
    ("cluster", "group", "need", "problem"),
    [
        (a_cluster(), "gpu", 1, "no worker group 'gpu': there are cpu, workers"),
        (a_cluster(), "workers", 5, "worker group workers may have 4 replicas, and 5 are wanted"),
        (a_cluster(enableInTreeAutoscaling=True), "workers", 2, "enableInTreeAutoscaling is on"),
    ],
)
def test_what_cannot_be_patched_is_said(cluster: dict[str, Any], group: str, need: int, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        patch(cluster, group, Need(replicas=need))


@pytest.fixture
def fake() -> Iterator[FakeKubernetes]:
    server = FakeKubernetes(PATH, a_cluster(3))
    yield server
    server.close()


def test_one_object_is_read_and_patched_by_name_and_nothing_else_is_asked(fake: FakeKubernetes) -> None:
    machines = RayClusterMachines(fake.api, "ns/r1", "workers")

    machines.provide(Need(replicas=1, unused_hosts=("pod-2",)))
    machines.provide(Need(replicas=1, unused_hosts=("pod-2",)))

    group = workers_of(fake.object)
    assert (group["replicas"], group["scaleStrategy"]) == (1, {"workersToDelete": ["pod-2"]})
    assert [(method, path) for method, path, _ in fake.asked] == [("GET", PATH), ("PATCH", PATH), ("GET", PATH)]
    assert fake.asked[1][2] == "application/json-patch+json"


def test_replicas_go_up_and_down_by_a_sequence_of_patches_that_never_deletes_a_pod_in_use(
    fake: FakeKubernetes,
) -> None:
    machines = RayClusterMachines(fake.api, "ns/r1", "workers")

    seen = []
    for need in (Need(replicas=4), Need(replicas=2, unused_hosts=("pod-4", "pod-5")), Need(replicas=3)):
        machines.provide(need)
        group = workers_of(fake.object)
        seen.append((group["replicas"], group["scaleStrategy"]["workersToDelete"]))

    assert seen == [(4, []), (2, ["pod-4", "pod-5"]), (3, [])]


def test_a_group_that_moved_in_the_list_meanwhile_is_not_mistaken_for_another(fake: FakeKubernetes) -> None:
    fake.before_patch = lambda: fake.object["spec"]["workerGroupSpecs"].reverse()

    with pytest.raises(OutriderError, match="RayCluster ns/r1: Kubernetes answered 422"):
        RayClusterMachines(fake.api, "ns/r1", "workers").provide(Need(replicas=1))

    assert {group["groupName"]: group["replicas"] for group in fake.object["spec"]["workerGroupSpecs"]} == {
        "cpu": 7,
        "workers": 3,
    }


def test_what_kubernetes_refuses_is_one_line_that_names_the_object(fake: FakeKubernetes) -> None:
    with pytest.raises(OutriderError, match=r"RayCluster ns/other: Kubernetes answered 403 Forbidden"):
        RayClusterMachines(fake.api, "ns/other", "workers").provide(Need(replicas=2))


def test_a_kubernetes_that_does_not_answer_is_one_line_too() -> None:
    api = kubernetes.client.CustomObjectsApi(
        kubernetes.client.ApiClient(kubernetes.client.Configuration(host="http://127.0.0.1:1"))
    )

    with pytest.raises(OutriderError, match="RayCluster ns/r1: Kubernetes does not answer"):
        RayClusterMachines(api, "ns/r1", "workers").provide(Need(replicas=2))


def test_a_updater_tells_what_changed_once_and_says_why_it_could_not() -> None:
    class Provider:
        def __init__(self) -> None:
            self.told: list[int] = []

        def provide(self, need: Need) -> None:
            if need.replicas == 9:
                raise OutriderError("the group may have 4")
            self.told.append(need.replicas)

    async def scenario() -> None:
        needs = itertools.chain([1, 1, 3, 3], itertools.repeat(9))
        provider = Provider()
        updater = MachineUpdater(provider, lambda: Need(replicas=next(needs)), check_every_s=0.001)
        task = asyncio.create_task(updater.run())
        while not updater.problem:
            await asyncio.sleep(0.001)
        task.cancel()

        assert provider.told == [1, 3]
        assert updater.problem == "machines for 9 replicas: the group may have 4"

    asyncio.run(scenario())


def test_hosts_that_another_replica_still_uses_are_not_given_back() -> None:
    assert unused(["a", "b", "a", "c"], ["b"]) == ("a", "c")
