import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.cluster.controller.gangs.topology import Node, choose_device, place


def nodes(*cores: float, gpus: float = 0.0) -> list[Node]:
    return [Node(node_id=f"n{number}", cores=count, gpus=gpus) for number, count in enumerate(cores)]


def test_ranks_that_fit_on_one_node_share_one_bundle() -> None:
    (bundle,) = place(2, nodes(2, 8), "cpu")

    assert bundle.ranks == (0, 1)
    assert bundle.resources == {"CPU": 2.0}
    assert bundle.threads_per_rank == 4


def test_ranks_that_no_node_holds_alone_are_spread_roomiest_first() -> None:
    bundles = place(5, nodes(1, 3, 2), "cpu")

    assert [bundle.ranks for bundle in bundles] == [(0, 1, 2), (3, 4)]


def test_more_ranks_than_cores_share_the_cores_of_one_node() -> None:
    (bundle,) = place(4, nodes(2), "cpu")

    assert bundle.ranks == (0, 1, 2, 3)
    assert bundle.resources == {"CPU": 2.0}
    assert bundle.threads_per_rank == 1


def test_every_gpu_rank_has_a_gpu_to_itself() -> None:
    bundles = place(4, nodes(16, 16, gpus=2), "cuda")

    assert [bundle.ranks for bundle in bundles] == [(0, 1), (2, 3)]
    assert all(bundle.resources["GPU"] == 2.0 for bundle in bundles)


def test_more_ranks_than_gpus_is_an_error_that_counts_them() -> None:
    with pytest.raises(ValueError, match=r"5 ranks need 5 GPUs, and the Ray cluster has 4"):
        place(5, nodes(16, 16, gpus=2), "cuda")


@pytest.mark.parametrize("fleet", [nodes(), nodes(0, 0)])
def test_a_fleet_without_cores_is_an_error(fleet: list[Node]) -> None:
    with pytest.raises(ValueError, match="2 ranks need a CPU core"):
        place(2, fleet, "cpu")


def test_auto_takes_gpus_where_the_fleet_has_them() -> None:
    assert choose_device("auto", nodes(2)) == "cpu"
    assert choose_device("auto", nodes(2, gpus=1)) == "cuda"
    assert choose_device("cpu", nodes(2, gpus=1)) == "cpu"


@given(
    world_size=st.integers(1, 24), cores=st.lists(st.floats(0, 16), max_size=6).filter(lambda c: max(c, default=0) >= 1)
)
def test_every_rank_is_placed_once_in_order_and_no_node_gives_more_than_it_has(
    world_size: int, cores: list[float]
) -> None:
    bundles = place(world_size, nodes(*cores), "cpu")

    assert [rank for bundle in bundles for rank in bundle.ranks] == list(range(world_size))
    roomiest_first = sorted((int(count) for count in cores), reverse=True)
    for bundle, room in zip(bundles, roomiest_first, strict=False):
        assert 0 < bundle.resources["CPU"] < room + 1
        assert bundle.threads_per_rank * len(bundle.ranks) <= max(room, len(bundle.ranks))
