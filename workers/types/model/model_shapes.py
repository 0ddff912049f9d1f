"""Number of parameters, bytes and operations of each part of a model. Pure; knows nothing of devices and splits."""

from dataclasses import dataclass
from functools import cached_property

from outrider.workers.types.model.model_config import ModelConfig

_WIDE = 2  # bytes of a bf16 or fp16 value
_FP8_GROUP = 128  # latent values that share a scale


@dataclass(frozen=True)
class Shapes:
    """Sizes are per layer, or of the whole part if there is only one. Bytes are those in a rank's memory."""

    model: ModelConfig
    weight_bytes: float  # per parameter of the layers' linears: 1 in FP8 (plus scales), 2 in bf16
    fp8_cache: bool = False

    @classmethod
    def of(cls, model: ModelConfig, weights: str = "auto", kv_cache_dtype: str = "auto") -> "Shapes":
        """`weights`: "auto" (the checkpoint's data type), "fp8", "bfloat16" or "float32"; ValueError for others."""
        if kv_cache_dtype not in ("auto", "fp8"):
            raise ValueError(f"kv_cache_dtype must be auto or fp8, got {kv_cache_dtype!r}")
        if weights not in ("auto", "fp8", "bfloat16", "float32"):
            raise ValueError(f"weights must be auto, fp8, bfloat16 or float32, got {weights!r}")
        block = model.quantization_block or (128, 128)
        quantised = weights == "fp8" or (weights == "auto" and model.quantization_block is not None)
        narrow = 1 + 4 / (block[0] * block[1])
        wide = 4 if "float32" in (weights, model.torch_dtype if weights == "auto" else "") else _WIDE
        return cls(model, narrow if quantised else wide, kv_cache_dtype == "fp8")

    @property
    def quantised(self) -> bool:
        return self.weight_bytes < _WIDE

    @property
    def value_bytes(self) -> int:
        """Bytes of an activation, and of a cache value unless the cache is in FP8."""
        return 4 if self.weight_bytes == 4 else _WIDE

    @cached_property
    def down(self) -> int:
        """Down projections of the hidden state: low-rank queries (if used) and the latent."""
        m = self.model
        return m.hidden_size * ((m.q_lora_rank or 0) + m.head_dim_latent)

    @cached_property
    def heads(self) -> int:
        """Projections per head: queries, keys and values from the latent, and the output."""
        m = self.model
        queries = m.num_attention_heads * m.qk_head_dim * (m.q_lora_rank or m.hidden_size)
        return queries + self.latent_up + m.num_attention_heads * m.v_head_dim * m.hidden_size

    @cached_property
    def latent_up(self) -> int:
        """Up projections of keys and values from the latent; kept in 16 bits in the absorbed form."""
        m = self.model
        return m.num_attention_heads * (m.qk_nope_head_dim + m.v_head_dim) * m.kv_lora_rank

    @cached_property
    def expert(self) -> int:
        return 3 * self.model.hidden_size * self.model.moe_intermediate_size

    @cached_property
    def shared(self) -> int:
        return self.expert * self.model.n_shared_experts

    @cached_property
    def dense(self) -> int:
        return 3 * self.model.hidden_size * self.model.intermediate_size

    @cached_property
    def router(self) -> int:
        return self.model.hidden_size * self.model.n_routed_experts

    @cached_property
    def vocabulary(self) -> int:
        """The embedding, or the head."""
        return self.model.vocab_size * self.model.hidden_size

    @cached_property
    def joiner(self) -> int:
        """An MTP module's projection of a token's embedding and a hidden state (eh_proj)."""
        return 2 * self.model.hidden_size**2

    def moe(self, layer: int) -> bool:
        return self.model.is_moe_layer(layer)

    def layer(self, layer: int) -> int:
        """Parameters of a decoder layer, without norms."""
        rest = self.router + self.shared + self.expert * self.model.n_routed_experts if self.moe(layer) else self.dense
        return self.down + self.heads + rest

    @cached_property
    def parameters(self) -> int:
        """Parameters of the main model."""
        layers = sum(self.layer(layer) for layer in range(self.model.num_hidden_layers))
        return layers + self.vocabulary * (1 if self.model.tie_word_embeddings else 2)

    @property
    def modules(self) -> range:
        """The layers that are MTP modules."""
        return range(self.model.num_hidden_layers, self.model.num_hidden_layers + self.model.num_nextn_predict_layers)

    @cached_property
    def drafter_parameters(self) -> int:
        """Parameters of the MTP modules, without the shared embedding and head."""
        return sum(self.layer(module) + self.joiner for module in self.modules)

    @property
    def attention_bytes(self) -> float:
        """Bytes of one layer's attention weights."""
        narrow = self.down + self.heads - self.latent_up
        return narrow * self.weight_bytes + self.latent_up * max(self.weight_bytes, _WIDE)

    def repeated(self, ranks: int, *, summed: bool) -> int:
        """Attention parameters of one layer that a tensor group of `ranks` holds more than once.

        With `summed` (numerics "fast") each rank computes all latents, which saves a collective.
        """
        return self.down * (ranks - 1) if summed else 0

    @property
    def wide_bytes(self) -> int:
        """Bytes of a parameter that is never quantised: embedding, head, joiner."""
        return self.value_bytes

    def cache_bytes(self, ranks: int) -> int:
        """Cache bytes per token and layer, on each rank of a tensor group of `ranks`."""
        if self.fp8_cache:  # kernels/gpu/slots.py
            rank = self.model.kv_lora_rank
            return rank + 4 * -(-rank // _FP8_GROUP) + self.model.qk_rope_head_dim * self.value_bytes
        return self.model.cache_width(self.model.num_attention_heads // ranks) * self.value_bytes


def hit_share(experts: int, chosen: int, tokens: float) -> float:
    """Expected share of experts chosen by at least one of `tokens` rows, if all experts are equally likely."""
    return float(1 - (1 - min(1.0, chosen / experts)) ** tokens) if experts else 0.0
