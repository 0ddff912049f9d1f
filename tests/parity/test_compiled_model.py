"""Hidden states, logits and caches of the compiled kernels against PyTorch and transformers, on drawn models."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import random_config, rewrite, write_checkpoint
from rounds import CompiledModel, Model, Rows, flat_rows, make_pairs, random_tokens, relative_errors
from torch import Tensor
from transformers import DeepseekV3ForCausalLM

from outrider.kernels.cpu.context import DRAW
from outrider.workers.drafting.pairs import pair_rows
from outrider.workers.model.compiled.model import CompiledModules
from outrider.workers.types.errors import CheckpointError

LENGTHS = (1, 23, 100)
GREEDY_TOKENS = 8

# What the random draws might miss, by name.
KINDS: dict[str, dict[str, Any]] = {
    "sums above 1024": {"hidden_size": 1100, "intermediate_size": 1300, "first_k_dense_replace": 1},
    "scout's attention": {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 32, "v_head_dim": 64},
    "a latent of that size, absorbed": {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 24},
    "heads of their own, three and no query latent": {
        "kv_lora_rank": 150, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 32, "q_lora_rank": None,
        "num_attention_heads": 3, "num_key_value_heads": 3,
    },
    "a latent that fills no vector": {"kv_lora_rank": 20, "qk_rope_head_dim": 6, "v_head_dim": 7},
    "a latent past four vectors": {"kv_lora_rank": 83, "qk_rope_head_dim": 2, "qk_nope_head_dim": 1},
    "one head, no query latent": {"num_attention_heads": 1, "num_key_value_heads": 1, "q_lora_rank": None},
    "three heads": {"num_attention_heads": 3, "num_key_value_heads": 3, "q_lora_rank": 24},
    "seventeen heads": {"num_attention_heads": 17, "num_key_value_heads": 17},
    "odd widths": {"hidden_size": 33, "intermediate_size": 17, "moe_intermediate_size": 15, "vocab_size": 61},
    "four groups, two chosen": {
        "n_group": 4, "topk_group": 2, "n_routed_experts": 12, "num_experts_per_tok": 4, "first_k_dense_replace": 0,
    },
    "all experts of one group": {
        "n_group": 2, "topk_group": 1, "n_routed_experts": 6, "num_experts_per_tok": 3, "first_k_dense_replace": 0,
    },
    "forty experts": {
        "n_group": 1, "topk_group": 1, "n_routed_experts": 40, "num_experts_per_tok": 9, "first_k_dense_replace": 0,
    },
    "dense only": {"first_k_dense_replace": 9},
    "tied embeddings": {"tie_word_embeddings": True},
}  # fmt: skip


def oracle(path: Path) -> DeepseekV3ForCausalLM:
    model: DeepseekV3ForCausalLM = DeepseekV3ForCausalLM.from_pretrained(path, dtype=torch.float32)
    return model


@torch.no_grad()
def oracle_states(model: DeepseekV3ForCausalLM, tokens: list[int]) -> tuple[Tensor, Tensor]:
    out = model(torch.tensor([tokens]), output_hidden_states=True)
    return out.hidden_states[-1][0], out.logits[0]


def sequences(vocab: int, block_size: int) -> list[Rows]:
    """One of each length, their blocks in any order."""
    blocks = torch.randperm(sum(-(-length // block_size) for length in LENGTHS)).tolist()
    parts = []
    for seed, length in enumerate(LENGTHS):
        own, blocks = blocks[: -(-length // block_size)], blocks[-(-length // block_size) :]
        parts.append(Rows(random_tokens(length, vocab, seed), 0, own))
    return parts


def assert_torchs_model(path: Path, vocab: int, block_size: int = 16) -> None:
    torchs, compiled = Model.load(path), CompiledModel.load(path, block_size=block_size, blocks=130)
    parts = sequences(vocab, block_size)
    blocks = [range(9 * i, 9 * i + 9) for i in range(len(parts))]
    wanted = torchs.hidden(*(Rows(part.tokens, 0, own) for part, own in zip(parts, blocks, strict=True)))

    got = compiled.hidden(*parts)

    assert relative_errors(got, wanted).max() < 1e-4
    assert relative_errors(compiled.logits(got), torchs.logits(wanted)).max() < 1e-4


def assert_transformers_model(path: Path, vocab: int, block_size: int = 16) -> None:
    reference_model = oracle(path)
    model = CompiledModel.load(path, block_size=block_size, blocks=130)
    for seed, length in enumerate(LENGTHS):
        prompt = random_tokens(length, vocab, seed)
        generated = model.greedy(prompt, GREEDY_TOKENS, range(130)[:: 1 if block_size == 1 else -1])
        tokens = prompt + generated
        states, logits = oracle_states(reference_model, tokens)
        assert relative_errors(model.hidden(Rows(tokens, 0, range(130))), states).max() < 1e-4
        assert generated == logits[length - 1 : -1].argmax(dim=-1).tolist()


@pytest.mark.parametrize("block_size", [1, 4, 16, 17])
@pytest.mark.parametrize("seed", range(5))
def test_a_drawn_model_has_the_states_and_logits_of_torchs_path(seed: int, block_size: int, tmp_path: Path) -> None:
    config = random_config(10 * block_size + seed)
    write_checkpoint(tmp_path, config, seed)

    assert_torchs_model(tmp_path, config["vocab_size"], block_size)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_a_named_kind_has_the_states_and_logits_of_torchs_path(kind: str, tmp_path: Path) -> None:
    config = random_config(100, **KINDS[kind])
    write_checkpoint(tmp_path, config, seed=7)

    assert_torchs_model(tmp_path, config["vocab_size"])


@pytest.mark.parametrize("seed", range(6))
def test_a_drawn_model_gives_transformers_states_and_greedy_tokens(seed: int, tmp_path: Path) -> None:
    config = random_config(seed)
    write_checkpoint(tmp_path, config, seed)

    assert_transformers_model(tmp_path, config["vocab_size"], block_size=(1, 4, 16, 17)[seed % 4])


@pytest.mark.full
@pytest.mark.parametrize("seed", range(200, 300))
def test_a_hundred_more_models_give_transformers_states_and_greedy_tokens(seed: int, tmp_path: Path) -> None:
    config = random_config(seed, num_attention_heads=(heads := 1 + seed % 6), num_key_value_heads=heads)
    write_checkpoint(tmp_path, config, seed)

    assert_transformers_model(tmp_path, config["vocab_size"], block_size=(1, 4, 16, 17)[seed % 4])


def test_a_model_without_shared_experts_is_torchs(tmp_path: Path) -> None:
    config = random_config(3, n_shared_experts=0, first_k_dense_replace=1)
    write_checkpoint(tmp_path, config)

    assert_torchs_model(tmp_path, config["vocab_size"])


@pytest.mark.parametrize("weights", ["mlp.gate_proj", "experts.0.gate_proj", "mlp.gate.weight"])
def test_gates_and_routers_far_from_zero_are_torchs(weights: str, tmp_path: Path) -> None:
    """Where sigmoids are 0 or 1 in float32, and their exponentials overflow; values near zero there are rare."""
    config = random_config(3, first_k_dense_replace=1, n_group=1, topk_group=1, n_routed_experts=6)
    write_checkpoint(tmp_path, config, 3)
    rewrite(tmp_path, lambda name, tensor: tensor * 1000 if weights in name else tensor)
    part = Rows(random_tokens(60, config["vocab_size"], 0), 0, range(4))

    got, wanted = (kind.load(tmp_path).hidden(part) for kind in (CompiledModel, Model))

    assert relative_errors(got, wanted).quantile(0.75) < 1e-4


@pytest.mark.parametrize("kind", [*KINDS])
@pytest.mark.parametrize("settings", [{}, {"block_size": 17, "threads": 3}], ids=["plain", "threads"])
def test_fast_numerics_compute_the_same_model(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """Long chunks of a prompt, one of them after others, beside short ones; and decoding after them."""
    config = random_config(100, **KINDS[kind])
    write_checkpoint(tmp_path, config, seed=7)
    exact = CompiledModel.load(tmp_path)
    fast = CompiledModel.load(tmp_path, numerics="fast", **settings)
    tokens = [random_tokens(count, config["vocab_size"], count) for count in (200, 90, 5)]
    tables = [range(13), range(13, 19), range(19, 20)]

    for spans in (((0, 64), (0, 70), (0, 3)), ((64, 199), (70, 90), (3, 4)), ((199, 200), (90, 90), (4, 5))):
        parts = [
            Rows(some[first:end], first, table) for some, table, (first, end) in zip(tokens, tables, spans, strict=True)
        ]
        assert relative_errors(fast.hidden(*parts), exact.hidden(*parts)).max() < 1e-4


def test_fast_numerics_draft_the_same_tokens(tmp_path: Path) -> None:
    """Whatever others left in slot 0, which no pair sees."""
    config = random_config(2, num_attention_heads=9, num_key_value_heads=9)
    write_checkpoint(tmp_path, config, seed=7)
    tokens, draws = random_tokens(150, config["vocab_size"], 0), np.zeros(1, dtype=DRAW)
    states = torch.randn(149, config["hidden_size"], generator=torch.Generator().manual_seed(0))
    drafts, leads = [], []
    for numerics in ("exact", "fast"):
        model = CompiledModel.load(tmp_path, numerics=numerics, drafts=True, threads=2)
        assert model.module is not None
        for table in ([*range(1, 10), 0], range(10)):
            pairs = make_pairs(states, tokens, 0, table)
            found = model.module.draft(pair_rows(pairs), pairs.hidden, pairs.last_rows, np.array([6]), draws)
        drafts.append(found[0].tolist())
        leads.append(found[1].tolist())

    assert drafts[0] == drafts[1]
    assert leads[0] == pytest.approx(leads[1], rel=1e-3)


@pytest.mark.parametrize("bias", [0.0, 5.0])
def test_experts_with_equal_scores_go_to_the_lower_id(bias: float, tmp_path: Path) -> None:
    config = random_config(
        8, first_k_dense_replace=0, n_group=2, topk_group=1, n_routed_experts=8, num_experts_per_tok=2
    )
    write_checkpoint(tmp_path, config)
    changed = {"mlp.gate.weight": 0.0, "e_score_correction_bias": bias}
    rewrite(
        tmp_path,
        lambda name, tensor: next((torch.full_like(tensor, v) for part, v in changed.items() if part in name), tensor),
    )

    assert_torchs_model(tmp_path, config["vocab_size"])


def test_a_block_takes_the_bytes_that_a_stage_says(tmp_path: Path) -> None:
    config = random_config(4, kv_lora_rank=20, qk_rope_head_dim=6)
    write_checkpoint(tmp_path, config)

    wide, narrow = (CompiledModel.load(tmp_path, dtype=d, drafts=True) for d in (torch.float32, torch.bfloat16))

    assert wide.stages[0].cache_bytes_per_block == config["num_hidden_layers"] * 16 * 32 * 4
    assert narrow.stages[0].cache_bytes_per_block == config["num_hidden_layers"] * 16 * 32 * 2
    assert wide.module is not None
    assert wide.module.cache_bytes_per_block == 16 * 32 * 4


def test_an_empty_round_passes_through(tmp_path: Path) -> None:
    config = random_config(4)
    write_checkpoint(tmp_path, config)
    model = CompiledModel.load(tmp_path, stages=2)

    hidden = model.hidden(Rows([], 0, [1]))

    assert hidden.shape == (0, config["hidden_size"])
    assert model.logits(hidden).shape == (0, config["vocab_size"])


def test_a_sequence_of_no_rows_beside_others_changes_nothing(tmp_path: Path) -> None:
    config = random_config(4)
    write_checkpoint(tmp_path, config)
    model, part = CompiledModel.load(tmp_path), Rows([5, 6, 7], 0, [2])

    assert torch.equal(model.hidden(Rows([], 3, [9]), part, Rows([], 0, [4])), model.hidden(part))


def test_what_a_stage_is_given_it_leaves_as_it_is(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, random_config(4))
    model = CompiledModel.load(tmp_path, stages=2)
    rows = Rows([1, 2, 3], 0, [0])
    given = torch.randn(3, random_config(4)["hidden_size"])
    before = given.clone()

    model.stages[1].run(flat_rows([rows]), given)

    assert torch.equal(given, before)


@pytest.mark.parametrize("missing", ["model.layers.1.self_attn.o_proj.weight", "lm_head.weight", "model.norm.weight"])
def test_a_checkpoint_that_lacks_a_tensor_is_refused_by_its_name(missing: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, random_config(4))
    rewrite(tmp_path, lambda name, tensor: tensor.flatten()[:1] if name == missing else tensor)

    with pytest.raises(CheckpointError, match=missing):
        CompiledModel.load(tmp_path)


def test_a_module_cannot_live_with_a_later_stage(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, random_config(4))
    model = CompiledModel.load(tmp_path, stages=2)

    with pytest.raises(CheckpointError, match="first stage"):
        CompiledModules(model.stages[1], model.loaders[1], None)


def test_logits_are_float32_and_finite_whatever_the_weights(tmp_path: Path) -> None:
    config = random_config(4)
    write_checkpoint(tmp_path, config)
    for settings in ({}, {"dtype": torch.bfloat16}, {"quantization": "int8"}):
        model = CompiledModel.load(tmp_path, **settings)  # type: ignore[arg-type]  # a table

        logits = model.logits(model.hidden(Rows([1, 2], 0, [0])))

        assert logits.dtype == torch.float32
        assert np.isfinite(logits.numpy()).all()
