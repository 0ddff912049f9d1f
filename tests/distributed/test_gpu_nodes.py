"""Where a gang's ranks go on a real Ray of several nodes with fake GPUs, and what becomes of it when a node goes."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator

import pytest
from distributed.controlled import Controlled
from distributed.gpu_nodes import GpuNodes
from distributed.stand_ins import IdleRank

from outrider.cluster.plan import ShardPlan
from outrider.proto import cluster_pb2
from outrider.workers.config import EngineConfig

Start = Callable[..., Controlled]


def gang_of(ranks: int) -> ShardPlan:
    return ShardPlan(layer_splits=tuple((rank, rank + 1) for rank in range(ranks)))


def start(controlled: Start, ranks: int, **changes: object) -> Controlled:
    return controlled(IdleRank, plan=gang_of(ranks), engine=EngineConfig(device="cuda"), may_grow=True, **changes)


def ranks_by_node(replica: cluster_pb2.ReplicaStatus) -> dict[str, list[int]]:
    found = defaultdict(list)
    for rank in replica.ranks:
        found[rank.node_id].append(rank.rank)
    return dict(found)


def all_ready(status: cluster_pb2.GetStatusResponse) -> bool:
    return bool(status.replicas) and all(replica.state == "ready" for replica in status.replicas)


@pytest.fixture
def gpu_nodes(ray_address: str) -> Iterator[GpuNodes]:
    nodes = GpuNodes(ray_address)
    yield nodes
    nodes.close()


@pytest.mark.full
def test_ranks_sit_as_planned_and_a_node_that_goes_is_named_and_replaced(
    controlled: Start, gpu_nodes: GpuNodes
) -> None:
    large, small = gpu_nodes.add(4, 2)
    cluster = start(controlled, ranks=6)

    (replica,) = cluster.wait_for_status(all_ready).replicas

    assert ranks_by_node(replica) == {large.node_id: [0, 1, 2, 3], small.node_id: [4, 5]}
    assert sorted(rank.visible_devices for rank in replica.ranks[:4]) == ["0", "1", "2", "3"]
    assert all(rank.interface for rank in replica.ranks)

    gpu_nodes.remove(small)

    waiting = cluster.wait_for_status(lambda status: status.replicas[0].state == "waiting").replicas[0]
    ending = rf"generation 1 ended: rank [45] \(.*\) on node \S+ \(id {small.node_id[:12]}\) (died: |stopped answering)"
    assert re.match(ending, waiting.last_ending)
    assert waiting.problem in (
        "need 1 node with 4 GPUs and 1 with 2, have 1 with 4",
        "need 1 node with 4 GPUs and 1 with 2, have 1 with 4 of 4 free and 1 with 2 of 2 free",  # Ray has not noticed
    )
    (other,) = gpu_nodes.add(2)
    (replica,) = cluster.wait_for_status(all_ready).replicas
    assert replica.generation >= 2
    assert ranks_by_node(replica) == {large.node_id: [0, 1, 2, 3], other.node_id: [4, 5]}
    cluster.drain()


@pytest.mark.full
def test_a_gang_of_sixteen_takes_two_whole_nodes_and_a_second_waits_for_two_more(
    controlled: Start, gpu_nodes: GpuNodes
) -> None:
    whole = {node.node_id for node in gpu_nodes.add(8, 8, domain="rack1")}
    gpu_nodes.add(4, 4, 4, domain="rack2")
    cluster = start(controlled, ranks=16)
    (replica,) = cluster.wait_for_status(all_ready, within_s=120).replicas
    placed = ranks_by_node(replica)
    assert set(placed) == whole
    assert list(placed.values()) == [list(range(8)), list(range(8, 16))]

    response = cluster.stub.Scale(cluster_pb2.ScaleRequest(replicas=2))

    assert (response.ready, response.pending) == (1, 1)
    second = cluster.wait_for_status(lambda status: status.replicas[-1].state == "waiting").replicas[1]
    assert second.problem == "need 2 nodes with 8 GPUs, have 3 with 4 of 4 free and 2 with 0 of 8 free, in 2 domains"
    cluster.drain()


@pytest.mark.full
def test_a_gang_never_leaves_its_domain_where_one_holds_it(controlled: Start, gpu_nodes: GpuNodes) -> None:
    domains = {name: {node.node_id for node in gpu_nodes.add(4, 4, domain=name)} for name in ("rack1", "rack2")}
    cluster = start(controlled, ranks=6, replicas=2)

    replicas = cluster.wait_for_status(all_ready, within_s=120).replicas

    placed = [set(ranks_by_node(replica)) for replica in replicas]
    assert sorted(placed, key=sorted) == sorted(domains.values(), key=sorted)
    cluster.drain()
