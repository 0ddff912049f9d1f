"""Settings are checked once, where they enter; errors name the setting, the range and what it got."""

from pathlib import Path

import pytest

from outrider.workers.config import EngineConfig, ParallelConfig, resolve_model
from outrider.workers.engine.execution.memory import blocks_for
from outrider.workers.types.errors import CheckpointError, OutriderError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("device", "tpu"),
        ("dtype", "int4"),
        ("numerics", "sloppy"),
        ("max_num_seqs", 0),
        ("max_num_batched_tokens", 0),
        ("block_size", 0),
        ("block_size", True),
        ("max_num_seqs", 2.5),
        ("max_num_seqs", "4"),
        ("max_model_len", 1),
        ("kv_cache_memory_bytes", 0),
        ("kv_cache_dtype", "int8"),
        ("num_redundant_experts", -1),
        ("num_redundant_experts", 2),  # without enable_eplb
        ("eplb_window_size", 0),
        ("eplb_step_interval", 0),
        ("enable_eplb", True),  # without spread experts
        ("enable_dbo", True),  # with nobody to exchange with
        ("enable_dbo", "yes"),
        ("dbo_token_threshold", 1),  # two lanes of what
        ("round_timeout_s", 0.0),
        ("weight_cache_dir", ""),
        ("model", 5),
        ("model", None),
        ("draft_model", ""),
        ("seed", "a"),
        ("enable_prefix_caching", "no"),
        ("enable_eplb", 1),
        ("seed", 1.5),
        ("weight_cache_max_gib", 0.0),
        ("speculation", 17),
        ("speculation", None),
    ],
)
def test_a_bad_setting_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        EngineConfig(**{name: value})  # type: ignore[arg-type]  # a table


@pytest.mark.parametrize("name", ["tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"])
@pytest.mark.parametrize("size", [0, -1, True, 2.0, "2"])
def test_a_size_is_a_whole_number_of_at_least_one(name: str, size: object) -> None:
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1, got {size!r}"):
        ParallelConfig(**{name: size})  # type: ignore[arg-type]  # a table


def test_experts_are_spread_over_a_whole_stage_or_not_at_all() -> None:
    assert ParallelConfig(tensor_parallel_size=2, data_parallel_size=2, expert_parallel_size=4).world_size == 4
    with pytest.raises(ValueError, match=r"expert_parallel_size must be 1 or .* 2 x 2 = 4, got 2"):
        ParallelConfig(tensor_parallel_size=2, data_parallel_size=2, expert_parallel_size=2)


def test_settings_survive_the_trip_to_a_rank() -> None:
    config = EngineConfig(
        model=Path("m"),  # type: ignore[arg-type]  # as users have it
        pipeline_parallel_size=3,
        speculation=4,
        max_model_len=77,
    )

    assert config.model == "m"
    assert EngineConfig.from_json(config.to_json()) == config


def test_an_unknown_model_is_named_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"unknown model '.*nowhere'.*scout"):
        resolve_model(str(tmp_path / "nowhere"))


def test_the_cache_takes_what_it_is_given_and_no_more_than_can_be_used() -> None:
    config = EngineConfig(max_num_seqs=2, block_size=16, kv_cache_memory_bytes=10_000)

    assert blocks_for(config, max_model_len=1000, bytes_per_block=100, free_bytes=1) == 100
    assert blocks_for(config, max_model_len=32, bytes_per_block=100, free_bytes=1) == 4


def test_a_cache_too_small_for_one_block_is_an_error_with_the_numbers() -> None:
    config = EngineConfig(kv_cache_memory_bytes=99)

    with pytest.raises(OutriderError, match=r"kv_cache_memory_bytes=99 .* 100 bytes"):
        blocks_for(config, max_model_len=32, bytes_per_block=100, free_bytes=1)


@pytest.mark.parametrize("name", ["draft_model", "harvest_path"])
def test_what_needs_every_sequence_on_one_rank_is_refused_over_data_groups(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} needs data_parallel_size=1, got 2"):
        EngineConfig(data_parallel_size=2, **{name: "somewhere"})  # type: ignore[arg-type]  # a table
