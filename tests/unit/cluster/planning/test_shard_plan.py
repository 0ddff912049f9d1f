import json
from pathlib import Path

import pytest

from outrider.cluster.planning.shard_plan import make_plan
from outrider.workers.config import ParallelConfig, resolve_model
from outrider.workers.types.model.model_config import ModelConfig


@pytest.fixture(scope="module")
def scout() -> ModelConfig:
    return ModelConfig.load(resolve_model("scout"))


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 12])
@pytest.mark.parametrize("speculation", ["off", "auto", 8])
def test_every_layer_is_in_exactly_one_stage_and_no_stage_is_empty(
    scout: ModelConfig, stages: int, speculation: str | int
) -> None:
    plan = make_plan(scout, ParallelConfig(pipeline_parallel_size=stages), speculation)

    assert plan.world_size == stages
    assert [layer for first, end in plan.layer_splits for layer in range(first, end)] == list(
        range(scout.num_hidden_layers)
    )
    assert all(end > first for first, end in plan.layer_splits)


def test_the_stage_that_drafts_holds_fewer_layers_the_more_it_drafts(scout: ModelConfig) -> None:
    two = ParallelConfig(pipeline_parallel_size=2)

    first_stage = [make_plan(scout, two, speculation).layer_splits[0][1] for speculation in ("off", 1, 3, 8)]

    assert first_stage == sorted(first_stage, reverse=True)
    assert first_stage[0] > first_stage[-1]


def test_a_checkpoint_without_mtp_weights_is_planned_as_if_it_never_drafts(tmp_path: Path) -> None:
    values = json.loads((resolve_model("scout") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "num_nextn_predict_layers": 0}))
    model, two = ModelConfig.load(tmp_path), ParallelConfig(pipeline_parallel_size=2)

    assert make_plan(model, two, "auto") == make_plan(model, two, "off")


def test_more_stages_than_layers_is_an_error_that_names_both(scout: ModelConfig) -> None:
    layers = scout.num_hidden_layers

    with pytest.raises(ValueError, match=rf"{layers + 1}.*{layers} layers"):
        make_plan(scout, ParallelConfig(pipeline_parallel_size=layers + 1), "off")


def test_a_rank_is_named_by_its_stage_its_layers_and_its_process(scout: ModelConfig) -> None:
    plan = make_plan(scout, ParallelConfig(pipeline_parallel_size=2), "off")
    first, end = plan.layer_splits[1]

    assert plan.describe(1, 123) == f"rank 1 (stage 1, layers {first}..{end - 1}, pid 123)"
    assert plan.describe(1) == f"rank 1 (stage 1, layers {first}..{end - 1})"
