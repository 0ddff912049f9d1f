"""Hidden states and greedy tokens against transformers' DeepseekV3ForCausalLM, over randomly drawn models."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Layout, random_config, transformers_spelling, write_checkpoint
from rounds import Model, Rows, random_tokens
from torch import Tensor
from transformers import DeepseekV3ForCausalLM

PROMPT_LENGTHS = (1, 23, 100)
GREEDY_TOKENS = 8
BLOCKS = list(range(3, 13))

# What the random draws might miss, by name.
SPECIAL: dict[str, dict[str, Any]] = {
    "K above 1024": {
        "hidden_size": 1100,
        "intermediate_size": 1300,
        "num_hidden_layers": 2,
        "first_k_dense_replace": 1,
    },
    "one head, no query latent": {"num_attention_heads": 1, "num_key_value_heads": 1, "q_lora_rank": None},
    "four groups, two chosen": {"n_group": 4, "topk_group": 2, "n_routed_experts": 12, "num_experts_per_tok": 4},
    "dense only": {"first_k_dense_replace": 9},
    "tied embeddings": {"tie_word_embeddings": True},
    "scout's attention": {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 32, "v_head_dim": 64},
}


def oracle(path: Path) -> DeepseekV3ForCausalLM:
    model: DeepseekV3ForCausalLM = DeepseekV3ForCausalLM.from_pretrained(path, dtype=torch.float32)
    return model


@torch.no_grad()
def oracle_states(model: DeepseekV3ForCausalLM, tokens: list[int]) -> tuple[Tensor, Tensor]:
    out = model(torch.tensor([tokens]), output_hidden_states=True)
    return out.hidden_states[-1][0], out.logits[0]


def assert_close(got: Tensor, wanted: Tensor) -> None:
    """Within 1e-4, relative to each row's length."""
    errors = (got - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    assert errors.max() < 1e-4


def assert_same_model(path: Path, vocab: int) -> None:
    reference, model = oracle(path), Model.load(path)
    for seed, length in enumerate(PROMPT_LENGTHS):
        prompt = random_tokens(length, vocab, seed)
        generated = model.greedy(prompt, GREEDY_TOKENS, BLOCKS)
        tokens = prompt + generated
        states, logits = oracle_states(reference, tokens)
        assert_close(model.hidden(Rows(tokens, 0, BLOCKS)), states)
        assert generated == logits[length - 1 : -1].argmax(dim=-1).tolist()


@pytest.mark.parametrize("seed", range(20))
def test_a_randomly_drawn_model_gives_transformers_states_and_greedy_tokens(seed: int, tmp_path: Path) -> None:
    config = random_config(seed)
    write_checkpoint(tmp_path, config, seed)

    assert_same_model(tmp_path, config["vocab_size"])


@pytest.mark.parametrize("name", SPECIAL)
def test_a_model_of_a_named_kind_gives_transformers_states_and_greedy_tokens(name: str, tmp_path: Path) -> None:
    config = random_config(100, **SPECIAL[name])
    write_checkpoint(tmp_path, config, seed=7)

    assert_same_model(tmp_path, config["vocab_size"])


@pytest.mark.full
@pytest.mark.parametrize("seed", range(20, 120))
def test_a_hundred_more_models_give_transformers_states_and_greedy_tokens(seed: int, tmp_path: Path) -> None:
    config = random_config(seed)
    write_checkpoint(tmp_path, config, seed)

    assert_same_model(tmp_path, config["vocab_size"])


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_both_spellings_of_config_json_are_the_same_model(seed: int, tmp_path: Path) -> None:
    config = random_config(seed)
    write_checkpoint(tmp_path / "original", config, seed)
    write_checkpoint(tmp_path / "respelled", config, seed)
    (tmp_path / "respelled" / "config.json").write_text(json.dumps(transformers_spelling(config)))
    prompt = random_tokens(40, config["vocab_size"], seed)

    states = [Model.load(tmp_path / name).hidden(Rows(prompt, 0, BLOCKS)) for name in ("original", "respelled")]

    assert torch.equal(states[0], states[1])
    assert_close(states[1], oracle_states(oracle(tmp_path / "respelled"), prompt)[0])


def test_a_model_that_transformers_saved_is_read(tmp_path: Path) -> None:
    config = random_config(5, first_k_dense_replace=1)
    write_checkpoint(tmp_path / "written", config, layout=Layout(mtp=False))
    reference = oracle(tmp_path / "written")
    reference.save_pretrained(tmp_path / "saved")
    prompt = random_tokens(30, config["vocab_size"], 0)

    got = Model.load(tmp_path / "saved").hidden(Rows(prompt, 0, BLOCKS))

    assert_close(got, oracle_states(reference, prompt)[0])


@pytest.mark.parametrize(
    "layout",
    [Layout(dtype=torch.bfloat16), Layout(dtype=torch.float16), Layout(fp8_block=16), Layout(fp8_block=16, shards=3)],
    ids=["bf16", "fp16", "fp8", "fp8 in shards"],
)
def test_low_precision_weights_are_computed_with_in_float32(layout: Layout, tmp_path: Path) -> None:
    config = random_config(11, first_k_dense_replace=1)
    as_read = write_checkpoint(tmp_path / "stored", config, layout=layout)
    write_checkpoint(tmp_path / "wide", config)
    reference = oracle(tmp_path / "wide")
    reference.load_state_dict(oracle_layout(as_read), strict=False)
    prompt = random_tokens(30, config["vocab_size"], 0)

    got = Model.load(tmp_path / "stored").hidden(Rows(prompt, 0, BLOCKS))

    assert_close(got, oracle_states(reference, prompt)[0])


def oracle_layout(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """DeepSeek's names -> transformers', which holds a layer's experts as one tensor."""
    out = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    layers = {name.split(".experts.")[0] for name in tensors if ".mlp.experts." in name}
    for layer in layers:
        count = sum(name.startswith(f"{layer}.experts.") and name.endswith("up_proj.weight") for name in tensors)
        parts = [
            {part: tensors[f"{layer}.experts.{e}.{part}_proj.weight"] for part in ("gate", "up", "down")}
            for e in range(count)
        ]
        out[f"{layer}.experts.gate_up_proj"] = torch.stack([torch.cat([p["gate"], p["up"]]) for p in parts])
        out[f"{layer}.experts.down_proj"] = torch.stack([p["down"] for p in parts])
    return out


@pytest.mark.parametrize("seed", [0, 3])
def test_fast_numerics_compute_the_same_model(seed: int, tmp_path: Path) -> None:
    config = random_config(seed)
    write_checkpoint(tmp_path, config, seed)
    prompt = random_tokens(70, config["vocab_size"], 0)

    exact, fast = (Model.load(tmp_path, numerics=n).hidden(Rows(prompt, 0, BLOCKS)) for n in ("exact", "fast"))

    assert_close(fast, exact)
