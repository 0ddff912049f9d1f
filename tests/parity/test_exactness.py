"""The same bits of states, logits and routing however a sequence's rows are cut, accompanied, placed and split."""

import itertools
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import random_config, write_checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rounds import Model, Rows, random_tokens
from torch import Tensor, nn

from outrider.workers.config import resolve_model
from outrider.workers.model.moe import Router

LENGTH = 150
BLOCKS = list(range(5, 15))

MODELS: dict[str, dict[str, Any]] = {
    "scout's shape": {
        "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 3, "first_k_dense_replace": 1,
        "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 128, "kv_lora_rank": 512, "vocab_size": 512,
        "qk_nope_head_dim": 32, "qk_rope_head_dim": 64, "v_head_dim": 64, "moe_intermediate_size": 128,
        "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    },
    "groups and odd sizes": {
        "hidden_size": 80, "num_attention_heads": 6, "num_key_value_heads": 6, "kv_lora_rank": 48, "v_head_dim": 20,
        "n_routed_experts": 12, "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2, "moe_intermediate_size": 24,
    },
    "one head, sums above 1024": {
        "hidden_size": 1100, "intermediate_size": 1200, "num_hidden_layers": 2, "first_k_dense_replace": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "q_lora_rank": None,
    },
}  # fmt: skip


@dataclass
class Trace:
    """What the model said of one sequence, by position; the newest run of a position counts."""

    hidden: dict[int, Tensor] = field(default_factory=dict)
    logits: dict[int, Tensor] = field(default_factory=dict)
    routes: dict[int, list[Tensor]] = field(default_factory=dict)

    def run(self, model: Model, *parts: Rows) -> None:
        """One round, whose first part is the sequence."""
        with recorded_routes(model) as routes:
            hidden = model.hidden(*parts)
        logits = model.logits(hidden)
        for row in range(len(parts[0].tokens)):
            position = parts[0].start + row
            self.hidden[position], self.logits[position] = hidden[row], logits[row]
            self.routes[position] = [part[row] for layer in routes for part in layer]

    def assert_same_bits(self, other: "Trace") -> None:
        for position, hidden in other.hidden.items():
            assert torch.equal(self.hidden[position], hidden), f"hidden state at {position}"
            assert torch.equal(self.logits[position], other.logits[position]), f"logits at {position}"
            pairs = zip(self.routes[position], other.routes[position], strict=True)
            assert all(torch.equal(mine, its) for mine, its in pairs), f"routing at {position}"


@contextmanager
def recorded_routes(model: Model) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Ids and weights of every router in layer order, as the round runs."""
    routes: list[tuple[Tensor, Tensor]] = []

    def record(_module: nn.Module, _inputs: object, output: tuple[Tensor, Tensor]) -> None:
        routes.append(output)

    modules = [module for stage in model.stages for module in stage.modules() if isinstance(module, Router)]
    handles = [module.register_forward_hook(record) for module in modules]
    try:
        yield routes
    finally:
        for handle in handles:
            handle.remove()


def one_by_one(model: Model, tokens: Sequence[int]) -> Trace:
    trace = Trace()
    for position, token in enumerate(tokens):
        trace.run(model, Rows([token], position, BLOCKS))
    return trace


@dataclass(frozen=True)
class Case:
    """A model, a sequence, and what decoding it one row at a time gave."""

    path: Path
    model: Model
    tokens: list[int]
    expected: Trace


def make_case(path: Path, vocab: int) -> Case:
    model, tokens = Model.load(path), random_tokens(LENGTH, vocab, seed=1)
    return Case(path, model, tokens, one_by_one(model, tokens))


@pytest.fixture(scope="module", params=[*MODELS, "scout"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    if request.param == "scout":
        return make_case(resolve_model("scout"), 4096)
    path = tmp_path_factory.mktemp("model")
    config = random_config(0, **MODELS[request.param])
    write_checkpoint(path, config)
    return make_case(path, config["vocab_size"])


def in_chunks(case: Case, sizes: Sequence[int], blocks: Sequence[int] = BLOCKS, model: Model | None = None) -> Trace:
    """The sequence in chunks of the given sizes, the rest of it as the last."""
    trace, start = Trace(), 0
    for size in [*sizes, LENGTH]:
        if start < LENGTH:
            trace.run(model or case.model, Rows(case.tokens[start : start + size], start, blocks))
        start += size
    return trace


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 70), max_size=12))
def test_any_chunking_of_the_prompt_gives_the_same_bits(case: Case, sizes: list[int]) -> None:
    in_chunks(case, sizes).assert_same_bits(case.expected)


@pytest.mark.parametrize("rows", [2, 3, 4, 5])
def test_verifying_drafts_gives_the_same_bits_as_decoding(case: Case, rows: int) -> None:
    """Right drafts, then wrong ones whose slots the next round overwrites."""
    trace, start = in_chunks(case, []), 40
    trace.hidden.clear()
    while start + rows <= LENGTH:
        right = 1 + start % rows
        wrong = [(token + 1) % 97 for token in case.tokens[start + right : start + rows]]
        seen = Trace()
        seen.run(case.model, Rows([*case.tokens[start : start + right], *wrong], start, BLOCKS))
        for position in range(start, start + right):
            trace.hidden[position], trace.logits[position] = seen.hidden[position], seen.logits[position]
            trace.routes[position] = seen.routes[position]
        start += right
    expected = Trace({p: case.expected.hidden[p] for p in trace.hidden}, case.expected.logits, case.expected.routes)
    trace.assert_same_bits(expected)


@pytest.mark.parametrize("seed", range(4))
def test_companions_and_shuffled_blocks_change_no_bit(case: Case, seed: int) -> None:
    draw = random.Random(seed)
    ids = draw.sample(range(64), 60)
    mine, others = ids[:10], [ids[10 + 10 * i : 20 + 10 * i] for i in range(5)]
    trace, start = Trace(), 0
    while start < LENGTH:
        size = draw.choice([1, 1, 2, 5, 30])
        company = [
            Rows(random_tokens(draw.choice([1, 3, 20, 40]), 97, draw.randrange(99)), draw.randrange(110), blocks)
            for blocks in draw.sample(others, draw.randint(0, 5))
        ]
        trace.run(case.model, Rows(case.tokens[start : start + size], start, mine), *company)
        start += size

    trace.assert_same_bits(case.expected)


def test_where_a_sequence_stands_in_its_round_changes_no_bit(case: Case) -> None:
    others = [Rows(random_tokens(n, 97, n), 0, range(20 + 10 * n, 30 + 10 * n)) for n in (1, 2, 3)]
    part = Rows(case.tokens[:3], 0, BLOCKS)

    hidden = case.model.hidden(*others, part)

    assert torch.equal(hidden[-3:], torch.stack([case.expected.hidden[p] for p in range(3)]))


def test_two_stages_give_the_same_bits_as_one(case: Case) -> None:
    in_chunks(case, [50, 1, 4], model=Model.load(case.path, stages=2)).assert_same_bits(case.expected)


def test_two_threads_give_the_same_bits_as_one(case: Case) -> None:
    before = torch.get_num_threads()
    traces = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            traces.append(in_chunks(case, [100, 1, 5, 2, 17]))
    finally:
        torch.set_num_threads(before)

    traces[0].assert_same_bits(case.expected)
    traces[1].assert_same_bits(case.expected)


def test_a_prefix_hit_gives_the_same_bits(case: Case) -> None:
    """The first 64 tokens are another sequence's blocks: token 63 is computed again to have its state."""
    in_chunks(case, [])
    blocks, trace = [*BLOCKS[:4], *range(30, 36)], Trace()

    trace.run(case.model, Rows(case.tokens[63:100], 63, blocks, write_from=64))
    trace.run(case.model, Rows(case.tokens[100:], 100, blocks, write_from=64))

    hidden = {position: case.expected.hidden[position] for position in range(63, LENGTH)}
    trace.assert_same_bits(Trace(hidden, case.expected.logits, case.expected.routes))


def test_a_row_before_write_from_leaves_its_shared_slot_alone(case: Case) -> None:
    in_chunks(case, [])
    slot = BLOCKS[3] * 16 + 15
    before = [cache[slot].clone() for stage in case.model.stages for cache in stage.cache.layers]

    case.model.hidden(Rows([case.tokens[63] + 1, 5], 63, [*BLOCKS[:4], 30], write_from=64))

    after = [cache[slot] for stage in case.model.stages for cache in stage.cache.layers]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_a_long_context_gives_the_same_bits_in_every_cut() -> None:
    model, tokens, blocks = Model.load(resolve_model("scout")), random_tokens(900, 4096, 3), list(range(60))
    whole = model.hidden(Rows(tokens, 0, blocks))
    shuffled = random.Random(0).sample(blocks, 60)

    parts = [
        model.hidden(Rows(tokens[first:end], first, shuffled))
        for first, end in itertools.pairwise([0, 333, 640, 641, 655, 880, 885, *range(886, 901)])
    ]

    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("block_size", [1, 8, 32, 128])
def test_the_size_of_blocks_changes_no_bit(case: Case, block_size: int) -> None:
    model = Model.load(case.path, block_size=block_size, blocks=200)
    blocks = random.Random(0).sample(range(200), -(-LENGTH // block_size))

    in_chunks(case, [60, 1, 1, 3], blocks, model).assert_same_bits(case.expected)


def test_every_linear_of_a_model_has_an_exact_order(case: Case) -> None:
    names = {type(m).__name__ for stage in case.model.stages for m in stage.modules() if "Linear" in type(m).__name__}
    assert names <= {"PackedLinear", "TiledLinear"}
