"""Writes small random checkpoints in DeepSeek-V3's layout: every kind of model and of file that outrider reads."""

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

YARN = {
    "type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}


def random_config(seed: int, **changes: Any) -> dict[str, Any]:
    """A tiny model drawn by `seed`, in the original spelling of config.json; `changes` override what was drawn."""
    draw = random.Random(seed)
    groups = draw.choice([1, 1, 2, 4])
    experts = groups * draw.choice([2, 3, 4])
    topk_group = draw.randint(1, groups)
    layers = draw.choice([2, 3])
    config = {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "vocab_size": draw.choice([97, 128, 300]),
        "hidden_size": draw.choice([32, 48, 64, 80]),
        "intermediate_size": draw.choice([40, 64, 96]),
        "num_hidden_layers": layers,
        "num_nextn_predict_layers": 1,
        "num_attention_heads": (heads := draw.choice([1, 2, 4, 6])),
        "num_key_value_heads": heads,
        "q_lora_rank": draw.choice([None, 24, 48]),
        "kv_lora_rank": draw.choice([16, 32, 64]),
        "qk_nope_head_dim": draw.choice([8, 16, 24]),
        "qk_rope_head_dim": draw.choice([4, 8, 16]),
        "v_head_dim": draw.choice([8, 16, 20]),
        "first_k_dense_replace": draw.choice([0, 1, 1, layers + 1]),
        "moe_layer_freq": 1,
        "n_routed_experts": experts,
        "n_shared_experts": draw.choice([1, 1, 2]),
        "moe_intermediate_size": draw.choice([16, 24, 40]),
        "num_experts_per_tok": draw.randint(1, min(4, experts // groups * topk_group)),
        "n_group": groups,
        "topk_group": topk_group,
        "norm_topk_prob": draw.choice([True, False]),
        "routed_scaling_factor": draw.choice([1.0, 2.5]),
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "hidden_act": "silu",
        "rms_norm_eps": draw.choice([1e-6, 1e-5]),
        "rope_theta": draw.choice([1000.0, 10000.0]),
        "rope_scaling": draw.choice([None, YARN, {**YARN, "mscale": 0.7, "mscale_all_dim": 0.9}]),
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "torch_dtype": "float32",
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    return {**config, **changes}


def transformers_spelling(config: dict[str, Any]) -> dict[str, Any]:
    """The same model as transformers 5 writes it down."""
    respelled = {
        name: value
        for name, value in config.items()
        if name not in ("rope_scaling", "rope_theta", "torch_dtype", "scoring_func", "topk_method", "moe_layer_freq")
    }
    scaling = dict(config["rope_scaling"] or {"type": "default"})
    rope = {"rope_type": scaling.pop("type"), "rope_theta": config["rope_theta"], **scaling}
    return {**respelled, "rope_parameters": rope, "dtype": config["torch_dtype"], "rope_interleave": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a checkpoint is written."""

    dtype: torch.dtype = torch.float32
    mtp: bool = True
    shards: int = 1
    fp8_block: int | None = None  # block-scaled e4m3 for what DeepSeek quantises


def write_checkpoint(
    path: Path, config: dict[str, Any], seed: int = 0, layout: Layout | None = None
) -> dict[str, Tensor]:
    """Write random weights of `config` into `path`; the tensors as any reader should see them, in float32."""
    layout = layout or Layout()
    path.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: _draw(name, shape, generator) for name, shape in shapes(config, mtp=layout.mtp).items()}
    if layout.fp8_block is not None:
        settings = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [layout.fp8_block] * 2}
        config = {**config, "quantization_config": {**settings, "activation_scheme": "dynamic"}}
        stored = _quantized(tensors, layout.fp8_block)
    else:
        stored = {name: t.to(torch.float32 if _kept_wide(name) else layout.dtype) for name, t in tensors.items()}
    (path / "config.json").write_text(json.dumps(config))
    _save(path, stored, layout.shards)
    return _as_read(stored, layout.fp8_block)


def rewrite(path: Path, change: Callable[[str, Tensor], Tensor]) -> None:
    """Puts `change(name, tensor)` in the place of every tensor of an unsharded checkpoint."""
    file = path / "model.safetensors"
    save_file({name: change(name, tensor).contiguous() for name, tensor in load_file(file).items()}, file)


def shapes(config: dict[str, Any], *, mtp: bool) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor, MTP modules as further layers, in DeepSeek's layout."""
    vocab, hidden, layers = config["vocab_size"], config["hidden_size"], config["num_hidden_layers"]
    out: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        out["lm_head.weight"] = (vocab, hidden)
    for layer in range(layers):
        out |= _layer_shapes(config, layer)
    for layer in range(layers, layers + config["num_nextn_predict_layers"] * mtp):
        name = f"model.layers.{layer}."
        out |= _layer_shapes(config, layer)
        out |= {f"{name}{part}.weight": (hidden,) for part in ("enorm", "hnorm", "shared_head.norm")}
        out |= {f"{name}{part}.weight": (vocab, hidden) for part in ("embed_tokens", "shared_head.head")}
        out[name + "eh_proj.weight"] = (hidden, 2 * hidden)
    return out


def _layer_shapes(config: dict[str, Any], layer: int) -> dict[str, tuple[int, ...]]:
    hidden, name = config["hidden_size"], f"model.layers.{layer}."
    out: dict[str, tuple[int, ...]] = {
        name + "input_layernorm.weight": (hidden,),
        name + "post_attention_layernorm.weight": (hidden,),
    }
    out |= {f"{name}self_attn.{part}.weight": shape for part, shape in _attention_shapes(config).items()}
    if layer < config["first_k_dense_replace"]:
        return out | _mlp_shapes(name + "mlp.", hidden, config["intermediate_size"])
    experts, width = config["n_routed_experts"], config["moe_intermediate_size"]
    out[name + "mlp.gate.weight"] = (experts, hidden)
    out[name + "mlp.gate.e_score_correction_bias"] = (experts,)
    for expert in range(experts):
        out |= _mlp_shapes(f"{name}mlp.experts.{expert}.", hidden, width)
    if not config["n_shared_experts"]:
        return out
    return out | _mlp_shapes(name + "mlp.shared_experts.", hidden, width * config["n_shared_experts"])


def _attention_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, heads, rank = config["hidden_size"], config["num_attention_heads"], config["q_lora_rank"]
    latent, rope, value = config["kv_lora_rank"], config["qk_rope_head_dim"], config["v_head_dim"]
    query = heads * (config["qk_nope_head_dim"] + rope)
    out: dict[str, tuple[int, ...]] = {
        "kv_a_proj_with_mqa": (latent + rope, hidden),
        "kv_a_layernorm": (latent,),
        "kv_b_proj": (heads * (config["qk_nope_head_dim"] + value), latent),
        "o_proj": (hidden, heads * value),
    }
    if rank is None:
        return out | {"q_proj": (query, hidden)}
    return out | {"q_a_proj": (rank, hidden), "q_a_layernorm": (rank,), "q_b_proj": (query, rank)}


def _mlp_shapes(name: str, hidden: int, width: int) -> dict[str, tuple[int, ...]]:
    return {
        name + "gate_proj.weight": (width, hidden),
        name + "up_proj.weight": (width, hidden),
        name + "down_proj.weight": (hidden, width),
    }


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    values = torch.randn(shape, generator=generator)
    if name.endswith("norm.weight"):
        return 1 + 0.2 * values
    if name.endswith("e_score_correction_bias"):
        return 0.3 * values
    if "embed_tokens" in name:
        return values
    return values * (1.4 / math.sqrt(shape[1]))


def _kept_wide(name: str) -> bool:
    return name.endswith("e_score_correction_bias")


def _is_quantized(name: str) -> bool:
    kept = ("embed_tokens", "lm_head", "shared_head.head", "norm", "mlp.gate.", "eh_proj")
    return not any(part in name for part in kept)


def _quantized(tensors: dict[str, Tensor], block: int) -> dict[str, Tensor]:
    stored: dict[str, Tensor] = {}
    for name, values in tensors.items():
        if not _is_quantized(name):
            stored[name] = values if _kept_wide(name) else values.bfloat16()
            continue
        scales = torch.zeros(math.ceil(values.shape[0] / block), math.ceil(values.shape[1] / block))
        packed = torch.empty(values.shape, dtype=torch.float8_e4m3fn)
        for row, column in torch.cartesian_prod(torch.arange(len(scales)), torch.arange(scales.shape[1])).tolist():
            part = (slice(row * block, (row + 1) * block), slice(column * block, (column + 1) * block))
            scales[row, column] = values[part].abs().max() / 448
            packed[part] = (values[part] / scales[row, column]).to(torch.float8_e4m3fn)
        stored[name], stored[name + "_scale_inv"] = packed, scales
    return stored


def _as_read(stored: dict[str, Tensor], block: int | None) -> dict[str, Tensor]:
    """The stored tensors in float32, quantised ones multiplied out by plain repetition of their scales."""
    out = {}
    for name, values in stored.items():
        if name.endswith("_scale_inv"):
            continue
        out[name] = values.float()
        if block is not None and name + "_scale_inv" in stored:
            scales = stored[name + "_scale_inv"].repeat_interleave(block, 0).repeat_interleave(block, 1)
            out[name] = out[name] * scales[: values.shape[0], : values.shape[1]]
    return out


def _save(path: Path, tensors: dict[str, Tensor], shards: int) -> None:
    if shards == 1:
        save_file(tensors, path / "model.safetensors")
        return
    weight_map = {name: f"model-{1 + i % shards:05}-of-{shards:05}.safetensors" for i, name in enumerate(tensors)}
    for file in sorted(set(weight_map.values())):
        save_file({name: tensor for name, tensor in tensors.items() if weight_map[name] == file}, path / file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
