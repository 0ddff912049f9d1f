import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import YARN, random_config, transformers_spelling

from outrider.workers.types.errors import CheckpointError
from outrider.workers.types.model.model_config import ModelConfig

R1_YARN = {**YARN, "factor": 40, "original_max_position_embeddings": 4096}


def load(tmp_path: Path, config: dict[str, Any]) -> ModelConfig:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return ModelConfig.load(tmp_path)


def refusal(tmp_path: Path, **changes: Any) -> str:
    """What is said of a checkpoint with these fields."""
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, random_config(0, **changes))
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "config.json") in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("seed", range(12))
def test_both_spellings_say_the_same(seed: int, tmp_path: Path) -> None:
    config = random_config(seed)

    assert load(tmp_path, config) == load(tmp_path, transformers_spelling(config))


def test_r1s_softmax_scale_and_latent_size_are_the_published_ones(tmp_path: Path) -> None:
    sizes = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64}
    config = load(tmp_path, random_config(0, **sizes, rope_scaling=R1_YARN))

    assert config.head_dim_latent == 576
    assert config.softmax_scale == pytest.approx(0.13523, abs=1e-5)
    assert config.yarn is not None
    assert config.yarn.rotation_scale == 1.0


def test_r1_caches_latents_whatever_a_ranks_heads(tmp_path: Path) -> None:
    sizes = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
    config = load(tmp_path, random_config(0, **sizes, num_attention_heads=128, num_key_value_heads=128))

    assert not config.caches_heads
    assert config.cache_width(128) == config.cache_width(2) == 576
    assert config.key_products == 512 + 64 + 512


def test_few_heads_are_cached_themselves_where_that_is_no_larger(tmp_path: Path) -> None:
    sizes = {"kv_lora_rank": 384, "qk_nope_head_dim": 32, "qk_rope_head_dim": 64, "v_head_dim": 64}
    four, five = (
        load(tmp_path, random_config(0, **sizes, num_attention_heads=heads, num_key_value_heads=heads))
        for heads in (4, 5)
    )

    assert (four.caches_heads, five.caches_heads) == (True, False)
    assert (four.cache_width(4), four.cache_width(2), five.cache_width(5)) == (64 + 4 * 96, 64 + 2 * 96, 384 + 64)
    assert four.key_products == 32 + 64 + 64


@pytest.mark.parametrize("size", ["qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"])
def test_heads_that_fill_no_vectors_are_not_cached(tmp_path: Path, size: str) -> None:
    sizes = {"kv_lora_rank": 512, "qk_nope_head_dim": 32, "qk_rope_head_dim": 64, "v_head_dim": 64}

    assert not load(tmp_path, random_config(0, **{**sizes, size: 24})).caches_heads


def test_layers_from_first_k_dense_replace_up_have_experts(tmp_path: Path) -> None:
    config = load(tmp_path, random_config(0, first_k_dense_replace=2))

    assert [config.is_moe_layer(layer) for layer in range(4)] == [False, False, True, True]


def test_a_dense_model_needs_no_expert_fields(tmp_path: Path) -> None:
    fields = random_config(0)
    for name in ("n_routed_experts", "n_shared_experts", "num_experts_per_tok", "moe_intermediate_size", "n_group"):
        del fields[name]

    config = load(tmp_path, fields)

    assert not any(config.is_moe_layer(layer) for layer in range(5))


@pytest.mark.parametrize(("written", "read"), [(1, (1,)), ([1, 5], (1, 5)), (None, ())])
def test_end_of_sequence_may_be_one_id_or_several(written: Any, read: tuple[int, ...], tmp_path: Path) -> None:
    assert load(tmp_path, random_config(0, eos_token_id=written)).eos_token_ids == read


def test_generation_config_knows_better_where_generation_ends(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))

    assert load(tmp_path, random_config(0, eos_token_id=1)).eos_token_ids == (7, 8)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"eos_token_id": 1', r"generation_config\.json is not valid JSON"),
        ("[1]", r"generation_config\.json must hold a JSON object, not list"),
        ('{"eos_token_id": "</s>"}', r"generation_config\.json: eos_token_id must be .* got '</s>'"),
        ('{"eos_token_id": [1, 2.5]}', r"generation_config\.json: eos_token_id must be .* got \[1, 2\.5\]"),
        ('{"eos_token_id": [1, 500]}', r"generation_config\.json: eos_token_id 500 .* vocabulary of 300 tokens"),
    ],
)
def test_a_damaged_generation_config_is_named_with_its_field(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(text)

    with pytest.raises(CheckpointError, match=says):
        load(tmp_path, random_config(0, vocab_size=300))


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"eos_token_id": [True]}, "eos_token_id must be a non-negative integer or a list of them, got [True]"),
        ({"bos_token_id": "<s>"}, "bos_token_id must be an integer, got '<s>'"),
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM"),
        ({"model_type": "deepseek_v2", "architectures": None}, "deepseek_v2"),
        ({"model_type": "deepseek_v32", "architectures": ["DeepseekV32ForCausalLM"]}, "V3.2's sparse attention"),
        ({"index_topk": 2048, "index_n_heads": 64}, "sparse attention (index_n_heads, index_topk)"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "AWQ"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "GPTQ"),
        ({"quantization_config": {"quant_method": "fp8", "fmt": "e5m2", "weight_block_size": [128, 128]}}, "e4m3"),
        ({"quantization_config": {"quant_method": "fp8", "fmt": "e4m3"}}, "weight_block_size"),
        ({"scoring_func": "softmax"}, "scoring_func = 'softmax'"),
        ({"topk_method": "greedy"}, "topk_method = 'greedy'"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"num_key_value_heads": 3}, "num_key_value_heads = 3"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "64"}, "hidden_size must be an integer, got '64'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1, got 0"),
        ({"norm_topk_prob": 1}, "norm_topk_prob must be true or false, got 1"),
        ({"routed_scaling_factor": "big"}, "routed_scaling_factor must be a number, got 'big'"),
        ({"rope_scaling": "yarn"}, "rope_scaling must be an object, got 'yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "type 'linear'"),
        ({"rope_scaling": {"type": "yarn"}}, "factor is missing"),
        ({"qk_rope_head_dim": 5}, "qk_rope_head_dim must be even"),
        ({"n_routed_experts": 9, "n_group": 2}, "n_routed_experts = 9 must divide into n_group = 2"),
        ({"n_routed_experts": 8, "n_group": 4, "topk_group": 1, "num_experts_per_tok": 3}, "num_experts_per_tok = 3"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_refused_by_name(changes: dict[str, Any], names: str, tmp_path: Path) -> None:
    assert names in refusal(tmp_path, **changes)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_config_that_is_no_json_object_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)

    with pytest.raises(CheckpointError, match=r"config\.json"):
        ModelConfig.load(tmp_path)


def test_a_directory_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read .*config\.json: No such file"):
        ModelConfig.load(tmp_path)
