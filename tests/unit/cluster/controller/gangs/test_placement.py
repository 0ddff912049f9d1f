import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.cluster.controller.gangs.placement import GangResources, NodeResources, arrange


def gpu_nodes(*gpus: float, free: tuple[float, ...] | None = None, domains: str = "") -> list[NodeResources]:
    return [
        NodeResources(
            node_id=f"n{number}",
            name=f"node {number}",
            cores=32,
            gpus=count,
            free_cores=32,
            free_gpus=count if free is None else free[number],
            domain=domains[number] if domains else "",
        )
        for number, count in enumerate(gpus)
    ]


def cpu_nodes(*cores: float, free: tuple[float, ...] | None = None) -> list[NodeResources]:
    return [
        NodeResources(
            node_id=f"n{number}",
            name=f"node {number}",
            cores=count,
            gpus=0,
            free_cores=count if free is None else free[number],
            free_gpus=0,
        )
        for number, count in enumerate(cores)
    ]


def ranks_of(wanted: GangResources, fleet: list[NodeResources]) -> list[tuple[int, ...]]:
    found = arrange(wanted, fleet)
    assert found.shortage == ""
    return [bundle.ranks for bundle in found.bundles]


def on_gpus(world_size: int, group_size: int = 1, ranks_per_node: int | None = None) -> GangResources:
    return GangResources(world_size=world_size, device="cuda", group_size=group_size, ranks_per_node=ranks_per_node)


CPU_GANG = GangResources(world_size=3, device="cpu")


def test_a_gang_takes_what_is_free_and_not_what_others_have() -> None:
    assert ranks_of(on_gpus(4), gpu_nodes(8, 4, free=(2, 4))) == [(0, 1, 2, 3)]


def test_ranks_that_must_share_a_node_do_so() -> None:
    assert ranks_of(on_gpus(8, group_size=4), gpu_nodes(6, 6)) == [(0, 1, 2, 3), (4, 5, 6, 7)]


def test_a_gang_stays_within_a_domain_the_smallest_that_holds_it() -> None:
    fleet = gpu_nodes(4, 4, 4, 4, 4, domains="aaabb")

    found = arrange(on_gpus(8), fleet)

    assert (found.domain, len(found.bundles)) == ("b", 2)


def test_a_gang_that_no_domain_could_ever_hold_spans_them() -> None:
    assert len(arrange(on_gpus(16), gpu_nodes(8, 8, domains="ab")).bundles) == 2


def test_a_domain_that_is_only_busy_is_waited_for() -> None:
    found = arrange(on_gpus(8), gpu_nodes(4, 4, 4, free=(4, 0, 4), domains="aab"))

    assert found.shortage == "need 2 nodes with 4 GPUs, have 2 with 4 of 4 free and 1 with 0 of 4 free, in 2 domains"


@pytest.mark.parametrize(
    ("wanted", "fleet", "message"),
    [
        (on_gpus(16), gpu_nodes(8, 4), "need 2 nodes with 8 GPUs, have 1 with 8 and 1 with 4"),
        (on_gpus(12), gpu_nodes(8), "need 1 node with 8 GPUs and 1 with 4, have 1 with 8"),
        (on_gpus(16), gpu_nodes(8, 8, free=(8, 2)), "need 2 nodes with 8 GPUs, have 1 with 8 of 8 free and 1 with 2 of 8 free"),  # noqa: E501
        (on_gpus(16), cpu_nodes(4), "need 2 nodes with 8 GPUs, have none"),
        (on_gpus(1), [], "need 1 node with 1 GPU, have none"),
        (on_gpus(16, ranks_per_node=4), gpu_nodes(8), "need 4 nodes with 4 GPUs, have 1 with 8"),
        (CPU_GANG, cpu_nodes(4, free=(1,)), "need 1 node with 3 free cores, have 1 with 1 of 4 free"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said_in_nodes(wanted: GangResources, fleet: list[NodeResources], message: str) -> None:
    found = arrange(wanted, fleet)

    assert found.shortage == message
    assert sum(len(bundle.ranks) for bundle in found.bundles) == wanted.world_size


def test_a_machine_of_our_own_is_shared_by_replicas_without_being_reserved() -> None:
    wanted = GangResources(world_size=2, device="cpu", shares_cores=True, replicas=2)

    (bundle,) = arrange(wanted, cpu_nodes(8, free=(0,))).bundles

    assert bundle.resources["CPU"] < 0.1
    assert bundle.threads_per_rank == 2


def test_a_fleet_with_fewer_cores_than_ranks_is_shared_whole() -> None:
    (bundle,) = arrange(GangResources(world_size=4, device="cpu"), cpu_nodes(2)).bundles

    assert bundle.ranks == (0, 1, 2, 3)


@given(
    world=st.integers(1, 24),
    group=st.sampled_from([1, 2, 4]),
    nodes=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8), st.sampled_from(["", "a", "b"])), max_size=6),
)
def test_a_placement_fits_what_is_free_and_a_shortage_is_never_said_of_what_would_fit(
    world: int, group: int, nodes: list[tuple[int, int, str]]
) -> None:
    world *= group
    fleet = [
        NodeResources(
            node_id=f"n{n}", name="", cores=8, gpus=gpus, free_cores=8, free_gpus=min(free, gpus), domain=domain
        )
        for n, (gpus, free, domain) in enumerate(nodes)
    ]

    found = arrange(on_gpus(world, group), fleet)

    assert [rank for bundle in found.bundles for rank in bundle.ranks] == list(range(world))
    within = [node for node in fleet if found.domain in ("", node.domain)]
    fits = sum(int(node.free_gpus) // group * group for node in within) >= world
    if found.shortage:
        largest = max((sum(r.free_gpus // group * group for r in fleet if r.domain == d) for d in "ab"), default=0)
        assert not any(node.domain for node in fleet) or largest < world
        assert found.domain or not fits or any(node.domain for node in fleet)
    else:
        assert fits
        free = sorted((int(node.free_gpus) for node in within), reverse=True)
        for bundle, node in zip(found.bundles, free, strict=False):
            assert bundle.resources["GPU"] <= node
            assert len(bundle.ranks) % group == 0
