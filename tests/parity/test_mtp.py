"""The MTP module against a straight-line reference: float64, expanded attention over the whole history, no cache."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import random_config, write_checkpoint
from rounds import BLOCK_SIZE, Model, Rows, flat_rows, load_mtp, make_batch, random_tokens
from torch import Tensor

from outrider.workers.model.batch import Batch
from outrider.workers.types.rounds.round import ints

LENGTH = 90
BLOCKS = [9, 2, 7, 4, 11, 30, 1]

Weights = dict[str, Tensor]


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def rope(x: Tensor, theta: float) -> Tensor:
    """Pairs (2i, 2i+1) of [positions, heads, dim] turned as complex numbers."""
    half = x.shape[-1] // 2
    speeds = theta ** -(torch.arange(half, dtype=torch.float64) / half)
    turns = torch.polar(
        torch.ones(len(x), half, dtype=torch.float64), torch.outer(torch.arange(len(x)).double(), speeds)
    )
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], half, 2))
    return torch.view_as_real(pairs * turns[:, None]).flatten(-2)


def attention(w: Weights, x: Tensor, c: dict[str, Any]) -> Tensor:
    heads, nope, rotary, value = (
        c["num_attention_heads"], c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"],
    )  # fmt: skip
    if c["q_lora_rank"] is None:
        query = x @ w["q_proj.weight"].T
    else:
        query = norm(x @ w["q_a_proj.weight"].T, w["q_a_layernorm.weight"], 1e-6) @ w["q_b_proj.weight"].T
    query = query.view(len(x), heads, nope + rotary)
    down = x @ w["kv_a_proj_with_mqa.weight"].T
    low, key_rope = down[:, :-rotary], down[:, -rotary:]
    expanded = norm(low, w["kv_a_layernorm.weight"], 1e-6) @ w["kv_b_proj.weight"].T
    expanded = expanded.view(len(x), heads, nope + value)
    key, values = expanded[..., :nope], expanded[..., nope:]
    key_rope = rope(key_rope[:, None], c["rope_theta"]).expand(-1, heads, -1)
    query = torch.cat([query[..., :nope], rope(query[..., nope:], c["rope_theta"])], dim=-1)
    scores = torch.einsum("qhd,khd->hqk", query, torch.cat([key, key_rope], dim=-1)) / math.sqrt(nope + rotary)
    causal = torch.ones(len(x), len(x), dtype=torch.bool).tril()
    weights = scores.masked_fill(~causal, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, values).flatten(1) @ w["o_proj.weight"].T


def mlp(w: Weights, name: str, x: Tensor) -> Tensor:
    gate, up = x @ w[name + "gate_proj.weight"].T, x @ w[name + "up_proj.weight"].T
    return (gate * gate.sigmoid() * up) @ w[name + "down_proj.weight"].T


def experts(w: Weights, x: Tensor, c: dict[str, Any]) -> Tensor:
    out = []
    per_group = c["n_routed_experts"] // c["n_group"]
    for row in x:
        scores = (w["gate.weight"] @ row).sigmoid()
        biased = (scores + w["gate.e_score_correction_bias"]).tolist()
        groups = [sorted(biased[g * per_group : (g + 1) * per_group])[-2:] for g in range(c["n_group"])]
        best = sorted(range(c["n_group"]), key=lambda g: -sum(groups[g]))[: c["topk_group"]]
        allowed = [e for e in range(c["n_routed_experts"]) if e // per_group in best]
        chosen = sorted(allowed, key=lambda e: -biased[e])[: c["num_experts_per_tok"]]
        total = sum(scores[chosen]) if c["norm_topk_prob"] else 1
        routed = sum(scores[e] / total * c["routed_scaling_factor"] * mlp(w, f"experts.{e}.", row) for e in chosen)
        out.append(routed + mlp(w, "shared_experts.", row))
    return torch.stack(out)


def under(weights: Weights, prefix: str) -> Weights:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


class Reference:
    """One MTP module: fed pairs one after another, gives the last pair's state by running over all of them again."""

    def __init__(self, weights: Weights, config: dict[str, Any], layer: int) -> None:
        self.w, self.c = under(weights, f"model.layers.{layer}."), config
        self.is_moe = layer >= config["first_k_dense_replace"]
        self.embedding = weights["model.embed_tokens.weight"]
        self.head = weights["lm_head.weight"]

    def states(self, hidden: Tensor, next_tokens: list[int]) -> Tensor:
        w, eps = self.w, self.c["rms_norm_eps"]
        embedded = norm(self.embedding[next_tokens], w["enorm.weight"], eps)
        x = torch.cat([embedded, norm(hidden, w["hnorm.weight"], eps)], dim=-1) @ w["eh_proj.weight"].T
        x = x + attention(under(w, "self_attn."), norm(x, w["input_layernorm.weight"], eps), self.c)
        normed = norm(x, w["post_attention_layernorm.weight"], eps)
        x = x + (experts(under(w, "mlp."), normed, self.c) if self.is_moe else mlp(under(w, "mlp."), "", normed))
        return norm(x, w["shared_head.norm.weight"], eps)


def make(tmp_path: Path, **changes: Any) -> tuple[dict[str, Any], Weights]:
    config = random_config(2, rope_scaling=None, **changes)
    weights = write_checkpoint(tmp_path, config, seed=3)
    return config, {name: tensor.double() for name, tensor in weights.items()}


def relative_error(got: Tensor, wanted: Tensor) -> float:
    return float(((got.double() - wanted).norm(dim=-1) / wanted.norm(dim=-1)).max())


KINDS: dict[str, dict[str, Any]] = {
    "experts": {"first_k_dense_replace": 1},
    "dense": {"first_k_dense_replace": 9},
    "no query latent": {"q_lora_rank": None, "num_attention_heads": 1, "num_key_value_heads": 1},
}


@pytest.mark.parametrize("kind", KINDS)
def test_states_and_logits_are_the_references(kind: str, tmp_path: Path) -> None:
    config, weights = make(tmp_path, **KINDS[kind])
    model = Model.load(tmp_path)
    mtp = load_mtp(tmp_path, model.stages[0])
    tokens = random_tokens(LENGTH + 1, config["vocab_size"], 0)
    hidden = model.hidden(Rows(tokens[:-1], 0, BLOCKS))

    state = mtp.forward(make_batch([Rows(tokens[1:], 0, BLOCKS)], mtp=True), hidden)

    reference = Reference(weights, config, config["num_hidden_layers"])
    wanted = reference.states(hidden.double(), tokens[1:])
    assert relative_error(state, wanted) < 1e-5
    assert relative_error(mtp.logits(state), wanted @ reference.head.T) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_recursion_feeds_drafts_and_states_after_the_norm(kind: str, tmp_path: Path) -> None:
    config, weights = make(tmp_path, **KINDS[kind])
    model = Model.load(tmp_path)
    mtp = load_mtp(tmp_path, model.stages[0])
    tokens = random_tokens(62, config["vocab_size"], 4)
    hidden = model.hidden(Rows(tokens[:-1], 0, BLOCKS))
    reference = Reference(weights, config, config["num_hidden_layers"])
    fed, nexts = hidden.double(), tokens[1:]

    state = mtp.forward(make_batch([Rows(nexts, 0, BLOCKS)], mtp=True), hidden)[-1:]
    for _ in range(5):
        wanted = reference.states(fed, nexts)[-1:]
        assert relative_error(state, wanted) < 1e-5
        draft = int((wanted @ reference.head.T).argmax())
        assert int(mtp.logits(state).argmax()) == draft
        fed, nexts = torch.cat([fed, wanted]), [*nexts, draft]
        state = mtp.forward(make_batch([Rows([draft], len(nexts) - 1, BLOCKS)], mtp=True), state)


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_whose_states_nobody_wants_leave_the_cache_and_others_states_of_one_pass(
    kind: str, tmp_path: Path
) -> None:
    config, _ = make(tmp_path, **KINDS[kind])
    model = Model.load(tmp_path)
    mtp = load_mtp(tmp_path, model.stages[0])
    tokens = random_tokens(LENGTH + 1, config["vocab_size"], 0)
    hidden = model.hidden(Rows(tokens[:-1], 0, BLOCKS))
    rows = flat_rows([Rows(tokens[41:], 40, BLOCKS), Rows(tokens[1:31], 0, [50, 51])], mtp=True)
    fed = torch.cat([hidden[40:], hidden[:30]])
    mtp.run(flat_rows([Rows(tokens[1:41], 0, BLOCKS)], mtp=True), hidden[:40])
    whole, cache = mtp.run(rows, fed), mtp.cache.layers[0]
    written = Batch.of(rows, BLOCK_SIZE).write_slots
    slots = cache[written].clone()
    for wanted in ([0, 49, 79], [79], []):
        cache[written] = 0.0

        assert torch.equal(mtp.run(rows, fed, wanted=ints(wanted)), whole[wanted])
        assert torch.equal(cache[written], slots)


def test_chunks_of_a_prompt_and_rewritten_drafts_leave_the_state_of_one_pass(tmp_path: Path) -> None:
    config, _ = make(tmp_path)
    model = Model.load(tmp_path)
    mtp = load_mtp(tmp_path, model.stages[0])
    tokens = random_tokens(LENGTH + 1, config["vocab_size"], 0)
    hidden = model.hidden(Rows(tokens[:-1], 0, BLOCKS))
    whole = mtp.forward(make_batch([Rows(tokens[1:], 0, BLOCKS)], mtp=True), hidden)

    others, parts = list(range(40, 47)), []
    for first, end in ((0, 64), (64, 65), (65, LENGTH)):
        mtp.forward(make_batch([Rows([5, 6], first, others)], mtp=True), hidden[:2])  # provisional, to be overwritten
        batch = make_batch([Rows(tokens[first + 1 : end + 1], first, others)], mtp=True)
        parts.append(mtp.forward(batch, hidden[first:end]))

    assert torch.equal(torch.cat(parts), whole)


def test_the_first_slot_is_never_seen(tmp_path: Path) -> None:
    """The pair (h_0, t_1) is at slot 1: what lies in slot 0 is nobody's."""
    config, _ = make(tmp_path)
    model = Model.load(tmp_path)
    mtp = load_mtp(tmp_path, model.stages[0])
    hidden = torch.randn(3, config["hidden_size"])
    batch = make_batch([Rows([1, 2, 3], 0, BLOCKS)], mtp=True)
    before = mtp.forward(batch, hidden)

    mtp.cache.layers[0][BLOCKS[0] * 16] = 100.0

    assert torch.equal(mtp.forward(batch, hidden), before)


def test_the_head_is_read_where_the_stage_has_none_and_shared_where_it_has(tmp_path: Path) -> None:
    make(tmp_path)
    whole, split = Model.load(tmp_path), Model.load(tmp_path, stages=2)
    alone, beside = (load_mtp(tmp_path, model.stages[0]) for model in (whole, split))
    state = torch.randn(2, 80)[:, : whole.stages[0].embedding.shape[1]]  # type: ignore[union-attr]  # a first stage

    assert split.stages[0].head is None
    assert torch.equal(alone.logits(state), whole.logits(state))
    assert torch.equal(beside.logits(state), alone.logits(state))
