"""Drafts, and the cache they leave, have the same bits however pairs are cut, accompanied, placed and shared out."""

import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import random_config, write_checkpoint
from rounds import WEIGHTS, CompiledModel, Rows, make_pairs, random_tokens, slots_of
from torch import Tensor

from outrider.kernels.cpu.context import DRAW
from outrider.workers.drafting.pairs import Pairs, joined, pair_rows

DEPTH = 6
SHAPE: dict[str, Any] = {
    "num_hidden_layers": 2, "first_k_dense_replace": 1, "max_position_embeddings": 1100, "vocab_size": 97,
    "num_attention_heads": 3, "num_key_value_heads": 3, "rope_scaling": None, "kv_lora_rank": 83,
}  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(folder, random_config(6, **SHAPE), seed=6)
    return folder


def load(path: Path, **settings: Any) -> CompiledModel:
    return CompiledModel.load(path, blocks=160, drafts=True, **settings)


def pairs_of(model: CompiledModel, tokens: Sequence[int], first: int, end: int, blocks: Sequence[int]) -> Pairs:
    """The pairs of positions `first`..`end`-1. A position's state is drawn by its number: any will do."""
    width = model.loaders[0].config.hidden_size
    states = [torch.randn(width, generator=torch.Generator().manual_seed(position)) for position in range(first, end)]
    return make_pairs(torch.stack(states), tokens, first, blocks)


Drafts = list[tuple[int, float]]  # tokens, and their leads over the next best


def draft(model: CompiledModel, parts: Sequence[Pairs], depths: Sequence[int]) -> list[Drafts]:
    """Sampled drafts after the last pair of each part whose depth is not zero."""
    assert model.module is not None
    pairs, going = joined(parts), np.flatnonzero(depths)
    last = pairs.last_rows[going]
    draws = np.zeros(len(going), dtype=DRAW)
    draws["sequence_key"], draws["position"], draws["temperature"], draws["top_p"] = 5, pairs.positions[last] + 2, 1, 1
    deep = np.array(depths)[going]
    tokens, leads, _ = model.module.draft(pair_rows(pairs), pairs.hidden, last, deep, draws)
    drafts = zip(tokens.tolist(), leads.tolist(), strict=True)
    return [list(itertools.islice(drafts, depth)) for depth in deep.tolist()]


def in_chunks(
    model: CompiledModel, tokens: Sequence[int], cuts: Sequence[int], blocks: Sequence[int]
) -> tuple[Drafts, Tensor]:
    """Drafts after all pairs, which are fed in chunks that end at `cuts`; and the cache, drafted entries included.

    After each chunk some drafts are made too, whose entries the next chunk overwrites.
    """
    drafts: list[Drafts] = []
    for first, end in itertools.pairwise([0, *cuts, len(tokens) - 1]):
        drafts = draft(model, [pairs_of(model, tokens, first, end, blocks)], [2 if end < len(tokens) - 1 else DEPTH])
    return drafts[0], cache(model, len(tokens), blocks)


def cache(model: CompiledModel, tokens: int, blocks: Sequence[int]) -> Tensor:
    """From slot 1 on, for slot 0 is nobody's."""
    return model.cached_pairs(slots_of(blocks, tokens + DEPTH - 1))[:, 1:]


@pytest.mark.parametrize("length", [100, 516, 1030])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_chunks_threads_and_blocks_change_neither_drafts_nor_cache(path: Path, weights: str, length: int) -> None:
    tokens = random_tokens(length, 97, 9)
    drafts, cached = in_chunks(load(path, **WEIGHTS[weights]), tokens, [], range(66))

    assert len({token for token, _ in drafts}) > 1
    for threads in (1, 2, 3, 4):
        model = load(path, threads=threads, **WEIGHTS[weights])
        blocks = random.Random(threads).sample(range(160), 66)
        found = in_chunks(model, tokens, [1, 3, 60, length - 9, length - 2], blocks)
        assert found[0] == drafts
        assert torch.equal(found[1], cached)


@pytest.mark.parametrize("length", [100, 513])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_companions_of_any_depth_change_neither_drafts_nor_cache(path: Path, weights: str, length: int) -> None:
    tokens, blocks = random_tokens(length, 97, 9), range(66)
    drafts, cached = in_chunks(load(path, **WEIGHTS[weights]), tokens, [], blocks)

    for threads in (1, 3):
        model = load(path, threads=threads, **WEIGHTS[weights])
        in_chunks(model, tokens[: length - 3], [], blocks)
        company = [
            pairs_of(model, random_tokens(40, 97, i), 0, 3 * i + 1, range(70 + 5 * i, 75 + 5 * i)) for i in range(6)
        ]
        own = pairs_of(model, tokens, length - 4, length - 1, blocks)
        found = draft(model, [*company[:3], own, *company[3:]], [1, 0, 3, DEPTH, 2, DEPTH, 0])
        assert [len(its) for its in found] == [1, 3, DEPTH, 2, DEPTH]
        assert found[2] == drafts
        assert torch.equal(cache(model, length, blocks), cached)


def test_slot_zero_is_never_seen(path: Path) -> None:
    """The pair (h_0, t_1) is at slot 1, and what others left before it is not seen."""
    tokens = random_tokens(20, 97, 9)
    found = []
    for left_behind in (3, 8):
        model = load(path)
        draft(model, [pairs_of(model, random_tokens(64, 97, left_behind), 15, 40, [1, 0, 2, 3])], [4])
        found.append(in_chunks(model, tokens, [], [0, 1])[0])

    assert found[0] == found[1]


def test_pairs_before_write_from_write_nothing(path: Path) -> None:
    model, tokens = load(path), random_tokens(60, 97, 1)
    draft(model, [pairs_of(model, tokens, 0, 40, range(4))], [1])
    before = model.cached_pairs(range(48))

    width = model.loaders[0].config.hidden_size
    draft(model, [make_pairs(torch.randn(20, width), tokens, 20, range(4), write_from=32)], [1])

    after = model.cached_pairs(range(48))
    assert torch.equal(after[:, :32], before[:, :32])
    assert not torch.equal(after[:, 32], before[:, 32])


def test_a_stage_and_its_module_have_caches_of_their_own(path: Path) -> None:
    model, tokens = load(path), random_tokens(40, 97, 1)
    states = model.hidden(Rows(tokens, 0, range(3)))

    draft(model, [pairs_of(model, tokens, 0, 39, range(3))], [3])

    assert torch.equal(model.hidden(Rows(tokens[20:], 20, range(3))), states[20:])
