"""Builds layers from a checkpoint, tensor by tensor. Knows DeepSeek's tensor names; knows nothing of rounds."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from outrider.workers.model.attention import Attention
from outrider.workers.model.batch import Batch
from outrider.workers.model.config import ModelConfig
from outrider.workers.model.layers import LATENT_NORM_EPS, Mlp, RmsNorm
from outrider.workers.model.linear import Linear, make_linear
from outrider.workers.model.moe import Experts, MoE, Router
from outrider.workers.model.rotary import Rotation
from outrider.workers.model.weights import Checkpoint

Progress = Callable[[int, int], None]  # layers loaded, layers in all


class DecoderLayer(nn.Module):
    """Attention, then a dense MLP or experts, each on the normed residual stream and added to it."""

    def __init__(self, input_norm: RmsNorm, attention: Attention, post_norm: RmsNorm, mlp: Mlp | MoE) -> None:
        super().__init__()
        self.input_norm, self.attention, self.post_norm, self.mlp = input_norm, attention, post_norm, mlp

    def forward(self, batch: Batch, hidden: Tensor, rotation: Rotation, cache: Tensor) -> Tensor:
        hidden = hidden + self.attention(batch, self.input_norm(hidden), rotation, cache)
        out: Tensor = hidden + self.mlp(self.post_norm(hidden))
        return out


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerLoader:
    """Reads `checkpoint` into modules of `dtype` on `device`. `exact`: in the canonical order of arithmetic."""

    config: ModelConfig
    checkpoint: Checkpoint
    dtype: torch.dtype
    device: torch.device
    exact: bool
    prefix: str = "model."

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        checkpoint: Checkpoint,
        *,
        numerics: str,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> "LayerLoader":
        device = torch.device(device)
        exact = numerics == "exact" and device.type == "cpu"
        return cls(config=config, checkpoint=checkpoint, dtype=dtype, device=device, exact=exact)

    def tensor(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return self.checkpoint.tensor(self.prefix + name, dtype or self.dtype, shape).to(self.device)

    def linear(self, *sizes: tuple[str, int], inputs: int, dtype: torch.dtype | None = None) -> Linear:
        """One product over the weights named in `sizes`, each with its number of outputs, laid one after another."""
        weights = [self.tensor(f"{name}.weight", outputs, inputs, dtype=dtype) for name, outputs in sizes]
        return make_linear(weights, exact=self.exact)

    def norm(self, name: str, size: int, eps: float | None = None) -> RmsNorm:
        return RmsNorm(self.tensor(f"{name}.weight", size), self.config.rms_norm_eps if eps is None else eps)

    def embedding(self) -> Tensor:
        return self.tensor("embed_tokens.weight", self.config.vocab_size, self.config.hidden_size)

    def head(self) -> Linear:
        name = "model.embed_tokens.weight" if self.config.tie_word_embeddings else "lm_head.weight"
        shape = (self.config.vocab_size, self.config.hidden_size)
        return make_linear(self.checkpoint.tensor(name, self.dtype, shape).to(self.device), exact=self.exact)

    def layer(self, number: int) -> DecoderLayer:
        hidden, moe, name = self.config.hidden_size, self.config.is_moe_layer(number), f"layers.{number}."
        return DecoderLayer(
            self.norm(name + "input_layernorm", hidden),
            self._attention(name + "self_attn."),
            self.norm(name + "post_attention_layernorm", hidden),
            self._moe(name + "mlp.") if moe else self._mlp(name + "mlp.", self.config.intermediate_size),
        )

    def _attention(self, name: str) -> Attention:
        config, hidden, rank = self.config, self.config.hidden_size, self.config.q_lora_rank
        queries = config.num_attention_heads * config.qk_head_dim
        key = (name + "kv_a_proj_with_mqa", config.head_dim_latent)
        key_up, value_up = self._latent_up(name)
        return Attention(
            config,
            down=self.linear((name + "q_a_proj", rank) if rank else (name + "q_proj", queries), key, inputs=hidden),
            query_norm=self.norm(name + "q_a_layernorm", rank, LATENT_NORM_EPS) if rank else None,
            query_up=self.linear((name + "q_b_proj", queries), inputs=rank) if rank else None,
            latent_norm=self.norm(name + "kv_a_layernorm", config.kv_lora_rank, LATENT_NORM_EPS),
            key_up=key_up,
            value_up=value_up,
            output=self.linear((name + "o_proj", hidden), inputs=config.num_attention_heads * config.v_head_dim),
        )

    def _latent_up(self, name: str) -> tuple[Tensor, Tensor]:
        """kv_b_proj by head: [heads, nope, latent] for keys, [heads, latent, v] for values."""
        config = self.config
        heads, nope, values = config.num_attention_heads, config.qk_nope_head_dim, config.v_head_dim
        shape = (heads * (nope + values), config.kv_lora_rank)
        weight = self.tensor(name + "kv_b_proj.weight", *shape, dtype=torch.float32).view(heads, nope + values, -1)
        return weight[:, :nope].contiguous(), weight[:, nope:].transpose(1, 2).contiguous()

    def _mlp(self, name: str, width: int) -> Mlp:
        hidden = self.config.hidden_size
        gate_up = self.linear((name + "gate_proj", width), (name + "up_proj", width), inputs=hidden)
        return Mlp(gate_up, self.linear((name + "down_proj", hidden), inputs=width))

    def _moe(self, name: str) -> MoE:
        config = self.config
        routed, shared = config.n_routed_experts, config.n_shared_experts * config.moe_intermediate_size
        router = Router(
            config,
            self.linear((name + "gate", routed), inputs=config.hidden_size, dtype=torch.float32),
            self.tensor(name + "gate.e_score_correction_bias", routed, dtype=torch.float32),
        )
        experts = [self._mlp(f"{name}experts.{expert}.", config.moe_intermediate_size) for expert in range(routed)]
        return MoE(router, Experts(experts), self._mlp(name + "shared_experts.", shared) if shared else None)
