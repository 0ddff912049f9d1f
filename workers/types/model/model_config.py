"""The model's sizes and switches, read from config.json. Torch-free, so that planner and command line can use it.

Reads two formats: DeepSeek's own (`rope_theta`, `rope_scaling`, `torch_dtype`) and that of transformers 5
(`rope_parameters`, `dtype`, no `scoring_func` and no `topk_method`). Errors name the field that is not supported.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outrider.workers.types.fields import Fields

ARCHITECTURE = "DeepseekV3ForCausalLM"
VECTOR = 16  # values that the kernels process at a time
_REQUIRED_VALUES = {
    "hidden_act": "silu",
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "moe_layer_freq": 1,
    "rope_interleave": True,
    "attention_bias": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Yarn:
    """YaRN's scaling of rotary positions (arXiv 2309.00071), as DeepSeek-V3 uses it."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float
    mscale: float
    mscale_all_dim: float

    @property
    def rotation_scale(self) -> float:
        """Factor of cosines and sines."""
        if self.mscale and self.mscale_all_dim:
            return _magnitude(self.factor, self.mscale) / _magnitude(self.factor, self.mscale_all_dim)
        return _magnitude(self.factor, 1.0)

    @property
    def softmax_scale(self) -> float:
        """Factor of the softmax scale."""
        return _magnitude(self.factor, self.mscale_all_dim) ** 2


def _magnitude(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Sizes and switches of a DeepSeek-V3-architecture model, named as in its config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_nextn_predict_layers: int
    num_attention_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    first_k_dense_replace: int
    n_routed_experts: int
    n_shared_experts: int
    moe_intermediate_size: int
    num_experts_per_tok: int
    n_group: int
    topk_group: int
    norm_topk_prob: bool
    routed_scaling_factor: float
    rms_norm_eps: float
    rope_theta: float
    yarn: Yarn | None
    max_position_embeddings: int
    tie_word_embeddings: bool
    torch_dtype: str
    quantization_block: tuple[int, int] | None  # rows and columns that share an FP8 scale; None: not quantised
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    @property
    def head_dim_latent(self) -> int:
        """Number of values in a token's latent, rotary key included."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def caches_heads(self) -> bool:
        """Whether the cache holds each head's keys and values, as in multi-head attention, instead of the latent.

        This is the case if heads are so few that it takes no more memory, since attention then takes a fraction of the
        time. Sizes must be multiples of VECTOR.
        """
        sizes = (self.qk_nope_head_dim, self.qk_rope_head_dim, self.v_head_dim)
        own = self.num_attention_heads * (self.qk_nope_head_dim + self.v_head_dim)
        return own <= self.kv_lora_rank and all(size % VECTOR == 0 for size in sizes)

    def cache_width(self, heads: int) -> int:
        """Number of values per token in the cache of one layer, on a rank with `heads` heads."""
        if not self.caches_heads:
            return self.head_dim_latent
        return self.qk_rope_head_dim + heads * (self.qk_nope_head_dim + self.v_head_dim)

    @property
    def key_products(self) -> int:
        """Multiplications of one head per cached token, for scores and for the weighted sum."""
        if not self.caches_heads:
            return self.head_dim_latent + self.kv_lora_rank
        return self.qk_head_dim + self.v_head_dim

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def softmax_scale(self) -> float:
        scale = 1 / math.sqrt(self.qk_head_dim)
        return scale * self.yarn.softmax_scale if self.yarn else scale

    def is_moe_layer(self, layer: int) -> bool:
        """Whether layer number `layer` routes to experts; MTP modules are layers num_hidden_layers and up."""
        return self.n_routed_experts > 0 and layer >= self.first_k_dense_replace

    @classmethod
    def load(cls, path: Path) -> "ModelConfig":
        """Reads the checkpoint's config in directory `path`. Raises CheckpointError that names an unsupported field."""
        fields = Fields.load(path / "config.json")
        _check_supported(fields)
        config = cls(**_sizes(fields), **_router(fields), **_rope(fields), **_format(fields), **_tokens(fields, path))
        _check_consistent(fields, config)
        return config


def _check_supported(fields: Fields) -> None:
    kind, architectures = fields.values.get("model_type"), fields.values.get("architectures") or []
    sparse = sorted(name for name in fields.values if name.startswith("index_"))
    if sparse or kind == "deepseek_v32" or "DeepseekV32ForCausalLM" in architectures:
        named = f" ({', '.join(sparse)})" if sparse else ""
        raise fields.error(f"DeepSeek-V3.2's sparse attention{named} is not supported: use a V3, V3.1 or R1 checkpoint")
    if kind != "deepseek_v3" and ARCHITECTURE not in architectures:
        found = ", ".join(map(str, architectures)) or kind or "no architecture"
        raise fields.error(f"architecture {found} is not supported: outrider runs {ARCHITECTURE} models")
    for name, only in _REQUIRED_VALUES.items():
        value = fields.values.get(name)
        if value is not None and value != only:
            raise fields.error(f"{name} = {value!r} is not supported: it must be {only!r}")


def _sizes(fields: Fields) -> dict[str, Any]:
    layers = fields.integer("num_hidden_layers", minimum=1)
    return {
        "vocab_size": fields.integer("vocab_size", minimum=1),
        "hidden_size": fields.integer("hidden_size", minimum=1),
        "intermediate_size": fields.integer("intermediate_size", minimum=1),
        "num_hidden_layers": layers,
        "num_nextn_predict_layers": fields.integer("num_nextn_predict_layers", default=0),
        "num_attention_heads": fields.integer("num_attention_heads", minimum=1),
        "q_lora_rank": fields.integer("q_lora_rank", default=0) or None,
        "kv_lora_rank": fields.integer("kv_lora_rank", minimum=1),
        "qk_nope_head_dim": fields.integer("qk_nope_head_dim", minimum=1),
        "qk_rope_head_dim": fields.integer("qk_rope_head_dim", minimum=2),
        "v_head_dim": fields.integer("v_head_dim", minimum=1),
        "rms_norm_eps": fields.number("rms_norm_eps", default=1e-6),
        "max_position_embeddings": fields.integer("max_position_embeddings", minimum=1),
        "tie_word_embeddings": fields.boolean("tie_word_embeddings", default=False),
    }


def _router(fields: Fields) -> dict[str, Any]:
    experts = fields.integer("n_routed_experts", default=0)
    needed = 1 if experts else 0
    return {
        "n_routed_experts": experts,
        "n_shared_experts": fields.integer("n_shared_experts", default=0),
        "moe_intermediate_size": fields.integer("moe_intermediate_size", default=0, minimum=needed),
        "num_experts_per_tok": fields.integer("num_experts_per_tok", default=0, minimum=needed),
        "first_k_dense_replace": fields.integer("first_k_dense_replace", default=0),
        "n_group": fields.integer("n_group", default=1, minimum=1),
        "topk_group": fields.integer("topk_group", default=1, minimum=1),
        "norm_topk_prob": fields.boolean("norm_topk_prob", default=True),
        "routed_scaling_factor": fields.number("routed_scaling_factor", default=1.0),
    }


def _rope(fields: Fields) -> dict[str, Any]:
    name = "rope_parameters" if fields.values.get("rope_parameters") else "rope_scaling"
    rope = fields.group(name)
    theta = rope.number("rope_theta", default=fields.number("rope_theta", default=10000.0))
    kind = rope.values.get("rope_type", rope.values.get("type")) or "default"
    if kind == "default":
        return {"rope_theta": theta, "yarn": None}
    if kind != "yarn":
        raise fields.error(f"{name} of type {kind!r} is not supported: it must be yarn, or absent")
    yarn = Yarn(
        factor=rope.number("factor"),
        original_max_position_embeddings=rope.integer("original_max_position_embeddings", minimum=1),
        beta_fast=rope.number("beta_fast", default=32.0),
        beta_slow=rope.number("beta_slow", default=1.0),
        mscale=rope.number("mscale", default=0.0),
        mscale_all_dim=rope.number("mscale_all_dim", default=0.0),
    )
    return {"rope_theta": theta, "yarn": yarn}


def _format(fields: Fields) -> dict[str, Any]:
    dtype = fields.values.get("dtype") or fields.values.get("torch_dtype") or "float32"
    return {"torch_dtype": str(dtype), "quantization_block": _quantization_block(fields)}


def _quantization_block(fields: Fields) -> tuple[int, int] | None:
    settings = fields.group("quantization_config")
    if not settings.values:
        return None
    method = settings.values.get("quant_method")
    block = settings.values.get("weight_block_size")
    if method != "fp8":
        raise fields.error(
            f"{str(method).upper()} quantisation is not supported:"
            " use a checkpoint in bf16, fp16, fp32 or block-scaled fp8"
        )
    if settings.values.get("fmt", "e4m3") != "e4m3" or not isinstance(block, list) or len(block) != 2 or min(block) < 1:
        raise fields.error("fp8 weights must be e4m3 with a weight_block_size of two numbers, such as [128, 128]")
    return int(block[0]), int(block[1])


def _tokens(fields: Fields, path: Path) -> dict[str, Any]:
    """Special tokens. generation_config.json, if it exists, has the complete list of end-of-sequence tokens."""
    generation = path / "generation_config.json"
    source = Fields.load(generation) if generation.is_file() else fields
    if "eos_token_id" not in source.values:
        source = fields
    ends, vocabulary = source.integers("eos_token_id"), fields.integer("vocab_size")
    if ends and max(ends) >= vocabulary:
        raise source.error(f"eos_token_id {max(ends)} is not in the model's vocabulary of {vocabulary} tokens")
    has_bos = fields.values.get("bos_token_id") is not None
    return {"bos_token_id": fields.integer("bos_token_id") if has_bos else None, "eos_token_ids": ends}


def _check_consistent(fields: Fields, config: ModelConfig) -> None:
    key_heads = fields.values.get("num_key_value_heads")
    if key_heads not in (None, config.num_attention_heads):
        raise fields.error(
            f"num_key_value_heads = {key_heads} must equal num_attention_heads = {config.num_attention_heads}"
        )
    if config.qk_rope_head_dim % 2:
        raise fields.error(f"qk_rope_head_dim must be even, got {config.qk_rope_head_dim}")
    if config.n_routed_experts:
        _check_groups(fields, config)


def _check_groups(fields: Fields, config: ModelConfig) -> None:
    experts, groups, chosen = config.n_routed_experts, config.n_group, min(config.topk_group, config.n_group)
    if experts % groups or (groups > 1 and experts // groups < 2):
        raise fields.error(f"n_routed_experts = {experts} must divide into n_group = {groups} groups of two or more")
    if config.num_experts_per_tok > experts // groups * chosen:
        raise fields.error(
            f"num_experts_per_tok = {config.num_experts_per_tok} is more than the {experts // groups * chosen} experts"
            f" of topk_group = {chosen} groups"
        )
