"""A split that a model does not allow is refused with the values; one that it allows gives every rank its share."""

import dataclasses
from itertools import chain

import pytest

from outrider.workers.config import ParallelConfig, resolve_model
from outrider.workers.parallel.shard import Shard, check_split
from outrider.workers.types.model.model_config import ModelConfig

SCOUT = ModelConfig.load(resolve_model("scout"))
R1 = dataclasses.replace(
    SCOUT, hidden_size=7168, intermediate_size=18432, moe_intermediate_size=2048, num_attention_heads=128,
    q_lora_rank=1536, n_routed_experts=256, vocab_size=129280, quantization_block=(128, 128),
)  # fmt: skip


def _split(**sizes: int) -> ParallelConfig:
    return ParallelConfig(**{f"{name}_parallel_size": size for name, size in sizes.items()})


@pytest.mark.parametrize(
    ("model", "sizes", "message"),
    [
        (SCOUT, {"tensor": 3}, r"tensor_parallel_size=3 does not divide the model's 4 attention heads"),
        (SCOUT, {"data": 3, "expert": 3}, r"expert_parallel_size=3 does not divide the model's 8 experts"),
        (R1, {"tensor": 32}, r"tensor_parallel_size=32 cuts the FP8 blocks of 128 rows in intermediate_size = 18432"),
        (
            dataclasses.replace(R1, intermediate_size=16384),
            {"tensor": 32},
            r"tensor_parallel_size=32 cuts the FP8 blocks of 128 rows in moe_intermediate_size = 2048",
        ),
    ],
)
def test_what_does_not_divide_is_refused_with_the_values(
    model: ModelConfig, sizes: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_split(model, _split(**sizes))


def test_a_model_without_experts_has_none_to_spread() -> None:
    dense = dataclasses.replace(SCOUT, n_routed_experts=0)

    with pytest.raises(ValueError, match="expert_parallel_size=2: the model has no experts"):
        check_split(dense, _split(tensor=2, expert=2))


def test_slices_too_thin_are_refused() -> None:
    thin = dataclasses.replace(SCOUT, num_attention_heads=64, vocab_size=100)

    with pytest.raises(ValueError, match=r"tensor_parallel_size=64 is too many for vocab_size = 100"):
        check_split(thin, _split(tensor=64))


@pytest.mark.parametrize(
    "sizes",
    [
        {"tensor": 8},
        {"tensor": 16},
        {"tensor": 8, "expert": 8},
        {"data": 16, "expert": 16},
        {"pipeline": 2, "tensor": 8},
    ],
)
def test_r1_splits_as_it_is_served(sizes: dict[str, int]) -> None:
    check_split(R1, _split(**sizes))


@pytest.mark.parametrize("sizes", [{"tensor": 4}, {"tensor": 2, "data": 2, "expert": 4}, {"data": 4, "expert": 4}])
def test_every_head_and_every_expert_is_somewhere(sizes: dict[str, int]) -> None:
    parallel = _split(**sizes)
    shards = [Shard.of(parallel, rank, R1) for rank in range(parallel.world_size)]
    own_group = [shard for shard in shards if shard.data == 0]

    heads = [shard.heads(128) for shard in own_group]
    assert [head for each in heads for head in range(each.start, each.stop)] == list(range(128))
    assert list(chain.from_iterable(shard.slots(256) for shard in shards)) == list(range(256))
    assert shards[0].first_table(256).ravel().tolist() == list(range(256))


def test_redundant_slots_hold_the_first_experts_again() -> None:
    shard = Shard.of(_split(data=4, expert=4), 3, R1, redundant=32)

    assert list(shard.slots(256)) == list(range(216, 288))
    assert shard.first_table(256)[3].tolist() == [*range(216, 256), *range(32)]
