"""Hidden states, caches and logits have the bits of one rank, however layers are shared out.

The ranks are threads here; what they exchange goes through shared memory as between processes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Layout, random_config, write_checkpoint
from exchanged import stage_volume
from rounds import Decoder, Rows, load_model, random_tokens, slots_of
from sharded import all_sharings, close_all, on_all_ranks
from torch import Tensor

from outrider.workers.config import ParallelConfig
from outrider.workers.parallel.collectives.collectives import total_traffic
from outrider.workers.parallel.shard import Shard
from outrider.workers.parallel.sharing import Sharing
from outrider.workers.types.model.model_config import ModelConfig

KERNELS = ("torch", "float32", "bf16", "int8")
BLOCKS = [[3, 1, 7, 5], [2, 6, 4, 8], [9, 11, 10, 12], [13, 15, 14, 16]]
LENGTHS = [37, 20, 5, 1]
R1 = {  # its router and its number of heads, over tiny widths
    "hidden_size": 96, "intermediate_size": 96, "num_hidden_layers": 2, "first_k_dense_replace": 1,
    "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 48, "kv_lora_rank": 32,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 256, "n_group": 8,
    "topk_group": 4, "num_experts_per_tok": 8, "n_shared_experts": 1, "moe_intermediate_size": 16, "vocab_size": 300,
    "norm_topk_prob": True, "routed_scaling_factor": 2.5,
}  # fmt: skip
SMALL = {
    "hidden_size": 80, "intermediate_size": 96, "num_hidden_layers": 3, "first_k_dense_replace": 1,
    "num_attention_heads": 4, "num_key_value_heads": 4, "n_routed_experts": 8, "n_group": 2, "topk_group": 1,
    "num_experts_per_tok": 2, "moe_intermediate_size": 40, "vocab_size": 97,
}  # fmt: skip
FEW_HEADS = {  # so that the cache holds what is theirs
    **SMALL, "qk_nope_head_dim": 16, "qk_rope_head_dim": 32, "v_head_dim": 16, "kv_lora_rank": 128,
}  # fmt: skip


def split(data: int = 1, tensor: int = 1, experts: int = 1) -> ParallelConfig:
    return ParallelConfig(data_parallel_size=data, tensor_parallel_size=tensor, expert_parallel_size=experts)


SPLITS = {
    "TP2": split(tensor=2),
    "TP4": split(tensor=4),
    "TP2+EP2": split(tensor=2, experts=2),
    "TP4+EP4": split(tensor=4, experts=4),
    "DP2+EP2": split(data=2, experts=2),
    "DP2xTP2": split(data=2, tensor=2),
    "DP2xTP2+EP4": split(data=2, tensor=2, experts=4),
}


def _checkpoint(folder: Path, seed: int, layout: Layout | None = None, **changes: Any) -> Path:
    write_checkpoint(folder, random_config(seed, **changes), seed=seed, layout=layout or Layout())
    return folder


def _prompts(path: Path) -> list[list[int]]:
    vocab = ModelConfig.load(path).vocab_size
    return [random_tokens(length + 3, vocab, seed=length) for length in LENGTHS]


def _rounds(prompts: Sequence[Sequence[int]]) -> list[dict[int, Rows]]:
    """Prompts by sequence number, the first in two chunks, then three rows for some and one for others."""
    first = {
        n: Rows(tokens[:length], 0, BLOCKS[n]) for n, (tokens, length) in enumerate(zip(prompts, LENGTHS, strict=True))
    }
    first[0] = Rows(prompts[0][:21], 0, BLOCKS[0])
    second = {0: Rows(prompts[0][21:37], 21, BLOCKS[0]), 3: Rows(prompts[3][1:2], 1, BLOCKS[3])}
    third = {n: Rows(prompts[n][LENGTHS[n] : LENGTHS[n] + 3], LENGTHS[n], BLOCKS[n]) for n in (0, 1, 2)}
    fourth = {3: Rows(prompts[3][2:3], 2, BLOCKS[3])}  # most data groups are idle
    return [first, second, third, fourth]


def _run(model: Decoder, rounds: Sequence[dict[int, Rows]], sequences: Sequence[int]) -> list[Tensor]:
    """The states of each round's rows of `sequences`, the logits of all of them, the cache."""
    idle = [Rows([], 0, [])]
    states = [model.hidden(*([round[n] for n in sequences if n in round] or idle)) for round in rounds]
    slots = [slot for n in sequences for slot in slots_of(BLOCKS[n], LENGTHS[n] + 3)]
    return [*states, model.logits(torch.cat(states)), model.cached(slots)]


def _own_columns(cached: Tensor, config: ModelConfig, shard: Shard) -> Tensor:
    """What a rank has of the whole cache [.., width], or of its bytes."""
    if not config.caches_heads:
        return cached
    heads, rope = shard.heads(config.num_attention_heads), config.qk_rope_head_dim
    key, value = config.qk_nope_head_dim, config.v_head_dim
    values = rope + config.num_attention_heads * key
    columns = [
        *range(rope),
        *range(rope + heads.start * key, rope + heads.stop * key),
        *range(values + heads.start * value, values + heads.stop * value),
    ]
    return cached.unflatten(-1, (config.cache_width(config.num_attention_heads), -1))[..., columns, :].flatten(-2)


def _assert_same_bits(path: Path, parallel: ParallelConfig, kernels: str, **settings: Any) -> None:
    prompts = _prompts(path)
    rounds = _rounds(prompts)
    whole = load_model(path, kernels, **settings)
    datas = parallel.data_parallel_size
    groups = [range(data, len(prompts), datas) for data in range(datas)]
    expected = [_run(whole, rounds, own) for own in groups]
    sharings = all_sharings(ModelConfig.load(path), parallel)

    def run(sharing: Sharing) -> list[Tensor]:
        model = load_model(path, kernels, sharing=sharing, **settings)
        *states, logits, cached = _run(model, rounds, groups[sharing.shard.data])
        cut = sharing.shard.vocabulary(whole_vocabulary)
        joined = sharing.columns(whole_vocabulary, "logits", unit=1)(logits)
        assert logits.shape[1] == cut.width(sharing.shard.tensor)
        return [*states, joined, cached]

    def wanted_of(sharing: Sharing) -> list[Tensor]:
        *rest, cached = expected[sharing.shard.data]
        return [*rest, _own_columns(cached, ModelConfig.load(path), sharing.shard)]

    whole_vocabulary = ModelConfig.load(path).vocab_size
    found = on_all_ranks(sharings, run)
    close_all(sharings)
    for sharing, own in zip(sharings, found, strict=True):
        for seen, wanted in zip(own, wanted_of(sharing), strict=True):
            assert torch.equal(seen, wanted), sharing.shard


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _checkpoint(tmp_path_factory.mktemp("small"), 3, **SMALL)


@pytest.fixture(scope="module")
def direct_queries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _checkpoint(tmp_path_factory.mktemp("direct"), 4, **{**SMALL, "q_lora_rank": None, "n_shared_experts": 2})


@pytest.fixture(scope="module")
def r1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _checkpoint(tmp_path_factory.mktemp("r1"), 5, **R1)


@pytest.mark.parametrize("kernels", ["torch", "float32"])
@pytest.mark.parametrize("layout", SPLITS)
def test_every_split_has_the_bits_of_one_rank(small: Path, layout: str, kernels: str) -> None:
    _assert_same_bits(small, SPLITS[layout], kernels)


@pytest.mark.parametrize(
    ("layout", "kernels"), [("TP2", "torch"), ("TP4", "float32"), ("DP2xTP2+EP4", "bf16"), ("DP2+EP2", "int8")]
)
def test_a_cache_of_the_heads_own_keys_is_split_with_them(tmp_path: Path, layout: str, kernels: str) -> None:
    path = _checkpoint(tmp_path, 7, **FEW_HEADS)
    assert ModelConfig.load(path).caches_heads

    _assert_same_bits(path, SPLITS[layout], kernels)


@pytest.mark.parametrize("kernels", ["torch", "float32"])
@pytest.mark.parametrize("layout", ["TP2", "DP2xTP2+EP4"])
def test_queries_made_in_one_step_are_split_too(direct_queries: Path, layout: str, kernels: str) -> None:
    _assert_same_bits(direct_queries, SPLITS[layout], kernels)


@pytest.mark.full
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(
    "parallel", [split(tensor=8), split(tensor=8, experts=8), split(2, 4, 8), split(4, 2, 8)], ids=str
)
def test_a_model_with_r1s_router_and_heads_has_the_bits_of_one_rank(
    r1: Path, parallel: ParallelConfig, kernels: str
) -> None:
    _assert_same_bits(r1, parallel, kernels)


def test_a_small_twin_of_that(r1: Path) -> None:
    _assert_same_bits(r1, split(tensor=8, experts=8), "float32")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kernels", ["bf16", "int8"])
def test_other_weights_and_teams_of_threads_are_split_alike(small: Path, kernels: str, threads: int) -> None:
    _assert_same_bits(small, SPLITS["DP2xTP2+EP4"], kernels, threads=threads)


@pytest.mark.full
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", SPLITS)
def test_torchs_path_in_half_precision_is_split_alike(small: Path, layout: str, dtype: torch.dtype) -> None:
    _assert_same_bits(small, SPLITS[layout], "torch", dtype=dtype)


@pytest.mark.parametrize("kernels", ["torch", "float32"])
def test_fp8_weights_are_split_between_their_blocks(tmp_path: Path, kernels: str) -> None:
    changes = {**SMALL, "hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 32, "q_lora_rank": 48}
    path = _checkpoint(tmp_path, 6, Layout(fp8_block=16), **changes)

    _assert_same_bits(path, SPLITS["TP2"], kernels)


@pytest.mark.parametrize("layout", SPLITS)
def test_a_round_exchanges_what_was_worked_out_beforehand(small: Path, layout: str) -> None:
    model, parallel = ModelConfig.load(small), SPLITS[layout]
    rounds = _rounds(_prompts(small))[:1]
    sharings = all_sharings(model, parallel)
    datas = parallel.data_parallel_size
    groups = [range(data, len(LENGTHS), datas) for data in range(datas)]

    def run(sharing: Sharing) -> None:
        decoder = load_model(small, "float32", sharing=sharing)
        decoder.hidden(*(rounds[0][n] for n in groups[sharing.shard.data]))

    on_all_ranks(sharings, run)
    found = [total_traffic(sharing.groups) for sharing in sharings]
    close_all(sharings)
    counts = [sum(len(rounds[0][n].tokens) for n in own) for own in groups]
    for sharing, carried in zip(sharings, found, strict=True):
        rows = counts[sharing.shard.data]
        wanted = stage_volume(model, sharing.shard, range(3), rows=rows, sampled=0, all_rows=sum(counts))
        wanted.pop("logits", None)
        assert {purpose: each.count for purpose, each in carried.items()} == {
            p: each.count for p, each in wanted.items()
        }
        exact = set(wanted) - {"expert outputs", "rows to experts"}
        assert {p: carried[p].bytes for p in exact} == {p: wanted[p].bytes for p in exact}
    if parallel.expert_parallel_size > 1:
        given = sum(carried["expert outputs"].bytes for carried in found)
        made = 2 * sum(counts) * model.num_experts_per_tok * model.hidden_size * 4
        elsewhere = made * (1 - 1 / parallel.stage_size)
        assert given == elsewhere if datas == 1 else 0.75 * elsewhere < given < 1.25 * elsewhere
