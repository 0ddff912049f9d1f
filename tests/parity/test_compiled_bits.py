"""Bits of the compiled kernels where test_exactness does not look: long contexts, many rows, threads, cache."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import random_config, write_checkpoint
from rounds import WEIGHTS, CompiledModel, Rows, random_tokens, slots_of
from torch import Tensor

LENGTH = 1025
BLOCKS = range(65)
# Contexts about the borders of what attention takes together: chunks of 64 slots, segments of 512.
BORDERS = (63, 64, 65, 128, 129, 511, 512, 513, 1023, 1024)
SHAPE: dict[str, Any] = {
    "num_hidden_layers": 2, "first_k_dense_replace": 1, "max_position_embeddings": 1100, "vocab_size": 97,
    "num_attention_heads": 3, "num_key_value_heads": 3, "rope_scaling": None, "kv_lora_rank": 83,
}  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(folder, random_config(6, **SHAPE), seed=6)
    return folder


@pytest.fixture(scope="module", params=WEIGHTS)
def weights(request: pytest.FixtureRequest) -> dict[str, Any]:
    settings: dict[str, Any] = WEIGHTS[request.param]
    return settings


def in_cuts(model: CompiledModel, tokens: Sequence[int], cuts: Sequence[int], blocks: Sequence[int]) -> Tensor:
    """The states of all tokens, in chunks that end at `cuts`."""
    ends = [0, *cuts, len(tokens)]
    return torch.cat([model.hidden(Rows(tokens[a:b], a, blocks)) for a, b in itertools.pairwise(ends) if b > a])


@dataclass(frozen=True)
class Whole:
    """A model, tokens, their states in one go, and what that left in the cache."""

    model: CompiledModel
    tokens: list[int]
    states: Tensor
    cached: Tensor


@pytest.fixture(scope="module")
def whole(path: Path, weights: dict[str, Any]) -> Whole:
    model, tokens = CompiledModel.load(path, blocks=160, **weights), random_tokens(LENGTH, 97, 0)
    states = model.hidden(Rows(tokens, 0, BLOCKS))
    return Whole(model, tokens, states, model.cached(slots_of(BLOCKS, LENGTH)))


def test_rows_on_both_sides_of_every_border_have_the_same_bits_one_by_one(whole: Whole) -> None:
    for border in BORDERS:
        for position in range(max(border - 2, 0), min(border + 2, LENGTH)):
            alone = whole.model.hidden(Rows([whole.tokens[position]], position, BLOCKS))
            assert torch.equal(alone[0], whole.states[position]), position


@pytest.mark.parametrize("rows", [2, 3, 4, 5, 7, 8, 9])
def test_few_rows_across_a_border_have_the_same_bits(rows: int, whole: Whole) -> None:
    for border in (64, 511, 512, 513, 1023, 1024):
        for first in range(border - rows, min(border + 1, LENGTH - rows)):
            found = whole.model.hidden(Rows(whole.tokens[first : first + rows], first, BLOCKS))
            assert torch.equal(found, whole.states[first : first + rows]), first


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_any_cut_on_any_number_of_threads_gives_the_same_bits_and_cache(
    path: Path, weights: dict[str, Any], threads: int, whole: Whole
) -> None:
    """One row, a few and many; across chunks, segments and the 256 rows that attend together."""
    model = CompiledModel.load(path, blocks=160, threads=threads, **weights)
    draw = random.Random(threads)
    blocks = draw.sample(range(160), 65)

    for cuts in ([], [511, 512, 513, 1023, 1024], [1, 258, 515], sorted(draw.sample(range(1, 1025), 12))):
        assert torch.equal(in_cuts(model, whole.tokens, cuts, blocks), whole.states), cuts
        assert torch.equal(model.cached(slots_of(blocks, LENGTH)), whole.cached), cuts


@pytest.mark.parametrize("block_size", [1, 4, 17, 64, 100])
def test_blocks_of_any_size_in_any_order_give_the_same_bits_and_cache(
    path: Path, weights: dict[str, Any], block_size: int, whole: Whole
) -> None:
    needed = -(-LENGTH // block_size)
    model = CompiledModel.load(path, blocks=needed + 5, block_size=block_size, threads=2, **weights)
    blocks = random.Random(block_size).sample(range(needed + 5), needed)

    assert torch.equal(in_cuts(model, whole.tokens, [500, 505, 510, 511, 512, 516], blocks), whole.states)
    assert torch.equal(model.cached(slots_of(blocks, LENGTH, block_size)), whole.cached)


@pytest.mark.parametrize("rows", [*range(1, 10), 20, 130])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_sequences_bits_are_its_own_beside_any_number_of_rows(
    path: Path, weights: dict[str, Any], rows: int, threads: int
) -> None:
    model = CompiledModel.load(path, blocks=160, threads=threads, **weights)
    tokens, other = random_tokens(70, 97, 1), random_tokens(rows, 97, 2)
    alone = model.hidden(Rows(tokens[:-4], 0, range(5)))
    last = model.hidden(Rows(tokens[-4:], 66, range(5)))
    logits = model.logits(last)

    beside = model.hidden(Rows(other, 0, range(20, 40)), Rows(tokens[:-4], 0, range(5, 10)))
    company = [Rows(other[i : i + 1], i, range(20, 40)) for i in range(min(rows, 3))]
    found = model.hidden(*company, Rows(tokens[-4:], 66, range(5, 10)), Rows(other, 0, range(40, 60)))

    assert torch.equal(beside[rows:], alone)
    assert torch.equal(found[len(company) :][:4], last)
    assert torch.equal(model.logits(found)[len(company) :][:4], logits)


def test_many_sequences_of_one_row_each_have_the_bits_of_one_alone(path: Path, weights: dict[str, Any]) -> None:
    """Of all lengths, so that some look back over segments and others over a few slots."""
    model = CompiledModel.load(path, blocks=400, threads=2, **weights)
    lengths = [1, 2, 63, 64, 65, 200, 511, 512, 513, 700, 1024]
    blocks = np.split(np.arange(400), np.cumsum([-(-length // 16) for length in lengths])[:-1])
    parts = []
    for seed, (length, own) in enumerate(zip(lengths, blocks, strict=True)):
        tokens = random_tokens(length, 97, seed)
        if length > 1:
            model.hidden(Rows(tokens[:-1], 0, own.tolist()))
        parts.append(Rows(tokens[-1:], length - 1, own.tolist()))

    alone = torch.cat([model.hidden(part) for part in parts])

    assert torch.equal(model.hidden(*parts), alone)
    assert torch.equal(model.hidden(*parts[::-1]), alone.flip(0))


@pytest.mark.parametrize("hit", [16, 512, 528])
def test_a_prefix_hit_leaves_the_bits_and_the_cache_of_a_whole_run(hit: int, whole: Whole) -> None:
    """The hit's last token is computed again for its state, and writes nothing."""
    blocks = [*range(hit // 16), *range(70, 70 + len(BLOCKS) - hit // 16)]

    found = whole.model.hidden(Rows(whole.tokens[hit - 1 :], hit - 1, blocks, write_from=hit))

    assert torch.equal(found, whole.states[hit - 1 :])
    assert torch.equal(whole.model.cached(slots_of(blocks, LENGTH)), whole.cached)


def test_what_others_left_in_the_cache_shows_nowhere(path: Path, weights: dict[str, Any]) -> None:
    used, tokens = CompiledModel.load(path, blocks=8, threads=2, **weights), random_tokens(90, 97, 3)
    clean = CompiledModel.load(path, blocks=8, **weights).hidden(Rows(tokens, 0, range(6)))

    used.hidden(Rows(random_tokens(128, 97, 4), 0, range(8)))

    assert torch.equal(in_cuts(used, tokens, [1, 7, 60, 64], range(6)), clean)


def test_two_stages_give_the_bits_and_the_cache_of_one(path: Path, weights: dict[str, Any], whole: Whole) -> None:
    split = CompiledModel.load(path, stages=2, blocks=160, threads=2, **weights)

    assert torch.equal(in_cuts(split, whole.tokens, [512, 1000, 1001], BLOCKS), whole.states)
    assert torch.equal(split.cached(slots_of(BLOCKS, LENGTH)), whole.cached)
