"""Layers are dealt out so that the slowest stage is as fast as can be."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.workers.config import resolve_model
from outrider.workers.model.config import ModelConfig
from outrider.workers.parallel.stages import expected_draft_steps, split_layers

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


def test_an_even_split_is_even() -> None:
    sizes = [end - first for first, end in split_layers(_with_layers(61), 4, 0)]

    assert max(sizes) - min(sizes) <= 1


def test_depth_that_cannot_be_is_not_expected() -> None:
    no_mtp = dataclasses.replace(SCOUT, num_nextn_predict_layers=0)

    assert [expected_draft_steps(s, SCOUT) for s in ("off", "auto", 5)] == [0, 2, 5]
    assert expected_draft_steps("auto", no_mtp) == 0
