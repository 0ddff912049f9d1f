"""Layers are dealt out so that the slowest stage is as fast as can be."""

import dataclasses
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.workers.config import resolve_model
from outrider.workers.parallel.stage_costs import stage_costs
from outrider.workers.parallel.stages import expected_draft_steps, split_by_cost, split_layers
from outrider.workers.types.model.model_config import ModelConfig

SCOUT = ModelConfig.load(resolve_model("scout"))


def _with_layers(layers: int) -> ModelConfig:
    return dataclasses.replace(SCOUT, num_hidden_layers=layers)


@given(layers=st.integers(1, 80), stages=st.integers(1, 16), steps=st.integers(0, 16))
def test_every_layer_is_on_one_stage_and_no_stage_is_empty(layers: int, stages: int, steps: int) -> None:
    if stages > layers:
        with pytest.raises(
            ValueError, match=f"pipeline_parallel_size={stages} is more than the model's {layers} layers"
        ):
            split_layers(_with_layers(layers), stages, steps)
        return

    splits = split_layers(_with_layers(layers), stages, steps)

    assert [layer for split in splits for layer in range(*split)] == list(range(layers))
    assert all(first < end for first, end in splits)


def test_a_first_stage_that_drafts_gets_fewer_layers() -> None:
    without, drafting = (split_layers(_with_layers(24), 3, steps) for steps in (0, 3))

    assert drafting[0][1] < without[0][1]


def test_modules_that_make_no_draft_cost_the_first_stage_too() -> None:
    def extra(modules: int, steps: int) -> float:
        return stage_costs(dataclasses.replace(SCOUT, num_nextn_predict_layers=modules), steps).first_extra

    assert extra(6, 1) > 1.5 * extra(1, 1)
    assert extra(1, 3) < extra(3, 3) < 2 * extra(1, 3)
    assert extra(6, 0) == extra(1, 0)


@pytest.mark.parametrize("steps", [0, 1, 2, 4])
def test_both_stages_of_scout_are_busy_alike(steps: int) -> None:
    costs = stage_costs(SCOUT, steps)
    ((_, cut), _) = split_layers(SCOUT, 2, steps)

    stages = costs.first_extra + sum(costs.layers[:cut]), sum(costs.layers[cut:]) + costs.last_extra

    assert abs(stages[0] - stages[1]) < max(costs.layers)


def test_a_head_over_a_large_vocabulary_counts_as_the_layers_that_it_costs() -> None:
    small, large = (dataclasses.replace(SCOUT, vocab_size=size) for size in (1024, 16384))

    assert split_layers(small, 2, 0)[0][1] == 6
    assert split_layers(large, 2, 0)[0][1] > 6, "of two stages that draft nothing the first has no head"


def test_experts_that_no_row_chooses_are_not_read() -> None:
    twice = dataclasses.replace(SCOUT, n_routed_experts=2 * SCOUT.n_routed_experts)
    dense = 0  # scout's first layer

    (ours, theirs) = (stage_costs(model, 0).layers for model in (SCOUT, twice))

    assert theirs[dense] == ours[dense]
    assert ours[-1] < theirs[-1] < 1.25 * ours[-1]


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


def test_depth_that_cannot_be_is_not_expected() -> None:
    no_mtp = dataclasses.replace(SCOUT, num_nextn_predict_layers=0)

    assert [expected_draft_steps(s, SCOUT) for s in ("off", "auto", 5)] == [0, 2, 5]
    assert expected_draft_steps("auto", no_mtp) == 0
