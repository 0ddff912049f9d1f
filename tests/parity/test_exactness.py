"""The same bits of states, logits and routing however a sequence's rows are cut, accompanied, placed and split.

In PyTorch and on the compiled kernels, whose routing is not seen, but decides the states.
"""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import random_config, write_checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rounds import WEIGHTS, CompiledModel, Model, Rows, load_model, random_tokens
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

    def run(self, model: Model | CompiledModel, *parts: Rows) -> None:
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
def recorded_routes(model: Model | CompiledModel) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Ids and weights of every router in layer order, as the round runs; nothing of compiled routers."""
    routes: list[tuple[Tensor, Tensor]] = []

    def record(_module: nn.Module, _inputs: object, output: tuple[Tensor, Tensor]) -> None:
        routes.append(output)

    stages = model.stages if isinstance(model, Model) else []
    modules = [module for stage in stages for module in stage.modules() if isinstance(module, Router)]
    handles = [module.register_forward_hook(record) for module in modules]
    try:
        yield routes
    finally:
        for handle in handles:
            handle.remove()


def one_by_one(model: Model | CompiledModel, tokens: Sequence[int]) -> Trace:
    trace = Trace()
    for position, token in enumerate(tokens):
        trace.run(model, Rows([token], position, BLOCKS))
    return trace


@dataclass(frozen=True)
class Case:
    """A model, a sequence, and what decoding it one row at a time gave."""

    load: Callable[..., Model | CompiledModel]
    model: Model | CompiledModel
    tokens: list[int]
    expected: Trace


def make_case(path: Path, vocab: int, kernels: str) -> Case:
    load = partial(load_model, path, kernels)
    model, tokens = load(), random_tokens(LENGTH, vocab, seed=1)
    return Case(load, model, tokens, one_by_one(model, tokens))


CASES = [(name, kernels) for name in [*MODELS, "scout"] for kernels in ["torch", *WEIGHTS]]
# In `make test` a kind of weights has one or two models, and float32 all; PyTorch has those that are made up.
LONG = [
    ("scout", "torch"), ("scout", "bf16"), ("scout", "int8"), ("scout's shape", "bf16"), ("scout's shape", "int8"),
    ("one head, sums above 1024", "bf16"),
]  # fmt: skip


@pytest.fixture(
    scope="module",
    params=[pytest.param(case, marks=pytest.mark.full) if case in LONG else case for case in CASES],
    ids=lambda case: f"{case[0]}, {case[1]}",
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    name, kernels = request.param
    if name == "scout":
        return make_case(resolve_model("scout"), 4096, kernels)
    path = tmp_path_factory.mktemp("model")
    config = random_config(0, **MODELS[name])
    write_checkpoint(path, config)
    return make_case(path, config["vocab_size"], kernels)


def in_chunks(
    case: Case, sizes: Sequence[int], blocks: Sequence[int] = BLOCKS, model: Model | CompiledModel | None = None
) -> Trace:
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


@pytest.mark.parametrize("rows", [2, 5, *(pytest.param(rows, marks=pytest.mark.full) for rows in (3, 4))])
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


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.full) for seed in (2, 3))])
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
    in_chunks(case, [50, 1, 4], model=case.load(stages=2)).assert_same_bits(case.expected)


@contextmanager
def model_on(case: Case, threads: int) -> Iterator[Model | CompiledModel]:
    if isinstance(case.model, CompiledModel):
        yield case.load(threads=threads)
        return
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield case.model
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_no_bit(case: Case, threads: int) -> None:
    with model_on(case, threads) as model:
        trace = in_chunks(case, [100, 1, 5, 2, 17], model=model)

    trace.assert_same_bits(case.expected)


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
    shared, own = BLOCKS[3] * 16 + 15, 30 * 16
    before = case.model.cached([shared, own])

    case.model.hidden(Rows([case.tokens[63] + 1, 5], 63, [*BLOCKS[:4], 30], write_from=64))

    after = case.model.cached([shared, own])
    assert torch.equal(after[:, 0], before[:, 0])
    assert not torch.equal(after[:, 1], before[:, 1]), "the next row's slot is written"


@pytest.mark.parametrize("kernels", [pytest.param("torch", marks=pytest.mark.full), "float32"])
def test_a_long_context_gives_the_same_bits_in_every_cut(kernels: str) -> None:
    model, tokens = load_model(resolve_model("scout"), kernels), random_tokens(900, 4096, 3)
    blocks = list(range(60))
    whole = model.hidden(Rows(tokens, 0, blocks))
    shuffled = random.Random(0).sample(blocks, 60)

    parts = [
        model.hidden(Rows(tokens[first:end], first, shuffled))
        for first, end in itertools.pairwise([0, 333, 640, 641, 655, 880, 885, *range(886, 901)])
    ]

    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("block_size", [1, 32, *(pytest.param(size, marks=pytest.mark.full) for size in (8, 128))])
def test_the_size_of_blocks_changes_no_bit(case: Case, block_size: int) -> None:
    model = case.load(block_size=block_size, blocks=200)
    blocks = random.Random(0).sample(range(200), -(-LENGTH // block_size))

    in_chunks(case, [60, 1, 1, 3], blocks, model).assert_same_bits(case.expected)


@pytest.mark.parametrize("name", MODELS)
def test_every_linear_of_torchs_path_has_an_exact_order(name: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, random_config(0, **MODELS[name]))

    stages = Model.load(tmp_path).stages

    names = {type(m).__name__ for stage in stages for m in stage.modules() if "Linear" in type(m).__name__}
    assert names <= {"PackedLinear", "TiledLinear"}
