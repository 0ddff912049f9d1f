import numpy as np
import pytest
from eplb import imbalance as eplb_imbalance
from eplb import rebalance
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.workers.experts.packing import FloatArray, count_copies, pack
from outrider.workers.experts.placement import ExpertPlacement
from outrider.workers.experts.placing import ExpertLayout, imbalance, place_experts, rank_loads

R1 = ExpertLayout(experts=256, ranks=32, redundant_experts=32, nodes=4, groups=8)
R1_GLOBAL = ExpertLayout(experts=256, ranks=32, redundant_experts=32)


def zipf(exponent: float, layers: int, experts: int = 256, seed: int = 0) -> FloatArray:
    """Loads that fall as rank^-exponent, dealt to experts at random in each layer."""
    random = np.random.default_rng(seed)
    loads = 1e6 / np.arange(1, experts + 1) ** exponent
    return np.stack([random.permutation(loads) for _ in range(layers)])


def eplb(loads: FloatArray, layout: ExpertLayout) -> list[float]:
    """EPLB's imbalance in each layer."""
    placed, copies = rebalance(
        loads.tolist(), slots=layout.slots, groups=layout.groups, nodes=layout.nodes, gpus=layout.ranks
    )
    return [eplb_imbalance(*layer) for layer in zip(loads.tolist(), placed, copies, strict=True)]


@st.composite
def problems(draw: st.DrawFn) -> tuple[FloatArray, ExpertLayout]:
    """Loads of some layers, zeros and ties among them, and a layout they fit."""
    nodes = draw(st.integers(1, 3))
    ranks = nodes * draw(st.integers(1, 4))
    groups = nodes * draw(st.integers(1, 2)) if draw(st.booleans()) else 1
    experts = groups * draw(st.integers(1, 6))
    parts = nodes if groups > 1 else 1
    slots = ranks * draw(st.integers(-(-experts // ranks), experts // parts))
    kind = st.one_of(st.just(0.0), st.just(1.0), st.floats(0, 1e9))
    layers = draw(st.integers(1, 3))
    loads = draw(st.lists(kind, min_size=layers * experts, max_size=layers * experts))
    layout = ExpertLayout(experts=experts, ranks=ranks, redundant_experts=slots - experts, nodes=nodes, groups=groups)
    return np.array(loads).reshape(layers, experts), layout


@settings(deadline=None, max_examples=150)
@given(problems())
def test_every_expert_is_placed_and_never_twice_on_one_rank(problem: tuple[FloatArray, ExpertLayout]) -> None:
    loads, layout = problem

    placement = place_experts(loads, layout)  # which refuses two copies on one rank, and an expert without a copy

    assert placement.experts.shape == (len(loads), layout.ranks, layout.slots_per_rank)
    assert (placement.copies.sum(axis=1) == layout.slots).all()
    assert np.allclose(rank_loads(loads, placement).sum(axis=1), loads.sum(axis=1))


@settings(deadline=None, max_examples=100)
@given(problems(), st.integers(0, 2**32 - 1))
def test_a_placement_at_present_is_kept_legal_and_comes_near_a_fresh_one(
    problem: tuple[FloatArray, ExpertLayout], seed: int
) -> None:
    loads, layout = problem
    before = place_experts(loads, layout)
    drifted = loads * np.random.default_rng(seed).uniform(0.2, 5.0, loads.shape)

    after = place_experts(drifted, layout, before)

    fresh = place_experts(drifted, layout)
    heaviest, best = (rank_loads(drifted, placement).max(axis=1) for placement in (after, fresh))
    assert (heaviest <= best * 1.02 * (1 + 1e-6) + 1e-6).all()


@settings(deadline=None, max_examples=100)
@given(problems())
def test_routing_groups_stay_whole_on_a_node(problem: tuple[FloatArray, ExpertLayout]) -> None:
    loads, layout = problem
    placement = place_experts(loads, layout)
    size = layout.experts // layout.groups

    by_node = placement.experts.reshape(placement.layers, layout.parts, -1) // size
    for layer in by_node:
        homes = [set(node.tolist()) for node in layer]
        assert sum(len(groups) for groups in homes) == len(set().union(*homes))


@pytest.mark.parametrize("exponent", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("layout", [R1, R1_GLOBAL], ids=["hierarchical", "global"])
def test_ranks_are_at_least_as_even_as_eplbs(exponent: float, layout: ExpertLayout) -> None:
    loads = zipf(exponent, layers=16)

    ours, theirs = imbalance(loads, place_experts(loads, layout)), np.array(eplb(loads, layout))

    assert ours.mean() <= theirs.mean() + 1e-9
    assert ours.max() <= theirs.max() + 1e-3


@pytest.mark.parametrize("layout", [R1, R1_GLOBAL], ids=["hierarchical", "global"])
def test_a_drift_of_a_tenth_moves_at_most_half_of_what_a_fresh_placement_does(layout: ExpertLayout) -> None:
    loads = zipf(0.6, layers=8)
    before = place_experts(loads, layout)
    drifted = loads * np.random.default_rng(1).uniform(0.9, 1.1, loads.shape)

    kept = place_experts(drifted, layout, before)

    fresh = place_experts(drifted, layout)
    assert kept.moves_from(before) <= fresh.moves_from(before) / 2
    assert imbalance(drifted, kept).max() <= imbalance(drifted, fresh).max() * 1.02 + 1e-9


def test_nothing_moves_while_the_loads_stay() -> None:
    loads = zipf(0.6, layers=4)
    before = place_experts(loads, R1)

    assert place_experts(loads, R1, before).moves_from(before) == 0


def test_an_expert_that_turns_hot_gets_more_copies_and_little_else_moves() -> None:
    loads = np.ones((1, 256))
    before = place_experts(loads, R1_GLOBAL)
    loads[0, 7] = 60.0  # seven ranks' worth

    after = place_experts(loads, R1_GLOBAL, before)

    assert after.copies[0, 7] > before.copies[0, 7]
    assert imbalance(loads, after)[0] <= imbalance(loads, place_experts(loads, R1_GLOBAL))[0] * 1.02


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=5), st.integers(0, 4))
def test_spare_copies_make_the_heaviest_copy_as_light_as_can_be(loads: list[float], spare: int) -> None:
    copies = count_copies(np.array([loads]), len(loads) + spare, most=len(loads) + spare)[0]

    def best(rest: list[float], left: int) -> float:
        """The lightest heaviest copy of all ways to share `left` spare copies out."""
        if not rest:
            return 0.0
        return min(max(rest[0] / (1 + own), best(rest[1:], left - own)) for own in range(left + 1))

    assert max(np.array(loads) / copies) == pytest.approx(best(loads, spare))


def test_packing_two_bins_finds_the_even_split() -> None:
    packed = pack(np.array([[7.0, 5.0, 4.0, 4.0, 3.0, 1.0]]), slots=6, bins=2, goal=np.array([12.0]))

    assert sorted(sum((7, 5, 4, 4, 3, 1)[item] for item in items) for items in packed[0]) == [12, 12]


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"experts": 256, "ranks": 48}, "256 experts"),
        ({"experts": 256, "ranks": 32, "nodes": 5}, "5 nodes"),
        ({"experts": 256, "ranks": 32, "nodes": 4, "groups": 6}, "6 groups"),
        ({"experts": 4, "ranks": 2, "redundant_experts": 8}, "two copies"),
        ({"experts": 0, "ranks": 1}, "positive"),
    ],
)
def test_a_layout_that_cannot_be_is_refused_by_its_sizes(sizes: dict[str, int], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ExpertLayout(**sizes)


@pytest.mark.parametrize("loads", [np.ones((2, 255)), np.full((2, 256), np.nan), -np.ones((2, 256))])
def test_loads_that_are_none_are_refused(loads: FloatArray) -> None:
    with pytest.raises(ValueError, match="loads must be"):
        place_experts(loads, R1)


def test_a_present_placement_of_another_layout_is_refused() -> None:
    other = place_experts(zipf(0.6, layers=1), ExpertLayout(experts=256, ranks=16))

    with pytest.raises(ValueError, match="present placement"):
        place_experts(zipf(0.6, layers=1), R1, other)


def test_hierarchical_placement_never_lets_a_node_hold_more_copies_than_ranks() -> None:
    loads = np.ones((1, 8))
    loads[0, 0] = 1e9
    layout = ExpertLayout(experts=8, ranks=4, redundant_experts=8, nodes=2, groups=2)

    placement = place_experts(loads, layout)

    assert isinstance(placement, ExpertPlacement)
    assert placement.copies[0, 0] == 2  # both ranks of its node
