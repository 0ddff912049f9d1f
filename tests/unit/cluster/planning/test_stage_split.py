from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.cluster.planning.stage_split import split_by_cost

COSTS = st.lists(st.floats(0.01, 10), min_size=1, max_size=8)


def slowest(costs: list[float], bounds: tuple[tuple[int, int], ...], first: float, last: float) -> float:
    stages = [sum(costs[begin:end]) for begin, end in bounds]
    stages[0] += first
    stages[-1] += last
    return max(stages)


@given(COSTS, st.data(), st.floats(0, 20), st.floats(0, 20))
def test_no_other_split_has_a_faster_slowest_stage(
    costs: list[float], data: st.DataObject, first: float, last: float
) -> None:
    stages = data.draw(st.integers(1, len(costs)))

    found = split_by_cost(costs, stages, first, last)

    assert [layer for begin, end in found for layer in range(begin, end)] == list(range(len(costs)))
    every = [tuple(pairwise((0, *cuts, len(costs)))) for cuts in combinations(range(1, len(costs)), stages - 1)]
    best = min(slowest(costs, bounds, first, last) for bounds in every)
    assert slowest(costs, found, first, last) == pytest.approx(best)


def test_the_stage_that_drafts_gets_fewer_layers() -> None:
    assert split_by_cost([1.0] * 12, 2, first_extra=4.0) == ((0, 4), (4, 12))


@pytest.mark.parametrize("stages", [0, 4])
def test_a_stage_without_a_layer_is_refused(stages: int) -> None:
    with pytest.raises(ValueError, match=f"pipeline_parallel_size={stages} does not split 3 layers"):
        split_by_cost([1.0] * 3, stages)
