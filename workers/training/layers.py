"""Trainable DeepSeek-V3 layers: multi-head latent attention in its expanded form and sigmoid-routed experts.

Written for training on a CPU: every shape is fixed, so that a layer compiles once. The residual stream is float32; a
norm casts to the compute dtype, and linears follow their input's. Parameters are named as in the checkpoint, except
that a layer's routed experts are stacked in three tensors (export.py splits them).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outrider.workers.training.shape import ModelSizes

LATENT_NORM_EPS = 1e-6
SILENT = 0.01  # initial scale of layer outputs: embedding and head learn token frequencies first


class TrainableLinear(nn.Linear):
    """A matrix without bias, kept in float32 and used in its input's dtype."""

    def __init__(self, inputs: int, outputs: int, scale: float = 0.5) -> None:
        super().__init__(inputs, outputs, bias=False)
        nn.init.normal_(self.weight, std=scale / math.sqrt(inputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32, cast to `dtype` at the end."""

    def __init__(self, width: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self._eps = eps
        self._dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self._eps) * self.weight).to(self._dtype)


def rotary_table(shape: ModelSizes, positions: Tensor) -> Tensor:
    """Cosines and sines of the rotary angles at `positions`: float32 [2, positions, rope / 2]."""
    pair = torch.arange(0, shape.qk_rope_head_dim, 2, dtype=torch.float32)
    angles = positions.float()[:, None] * shape.rope_theta ** -(pair / shape.qk_rope_head_dim)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Rotates the pairs (2i, 2i+1) of x [batch, tokens, heads, rope] by their angles, like the original checkpoints."""
    cos, sin = rotary[0][:, None], rotary[1][:, None]  # [tokens, 1, rope / 2]
    even, odd = x.float().view(*x.shape[:-1], -1, 2).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).to(x.dtype)


class TrainableAttention(nn.Module):
    """Multi-head latent attention, expanded: keys and values are projected up from the latent for every token."""

    def __init__(self, shape: ModelSizes, dtype: torch.dtype) -> None:
        super().__init__()
        heads = shape.num_attention_heads
        self._shape = shape
        self.q_a_proj = TrainableLinear(shape.hidden_size, shape.q_lora_rank)
        self.q_a_layernorm = RMSNorm(shape.q_lora_rank, LATENT_NORM_EPS, dtype)
        self.q_b_proj = TrainableLinear(shape.q_lora_rank, heads * shape.qk_head_dim)
        self.kv_a_proj_with_mqa = TrainableLinear(shape.hidden_size, shape.kv_lora_rank + shape.qk_rope_head_dim)
        self.kv_a_layernorm = RMSNorm(shape.kv_lora_rank, LATENT_NORM_EPS, dtype)
        self.kv_b_proj = TrainableLinear(shape.kv_lora_rank, heads * (shape.qk_nope_head_dim + shape.v_head_dim))
        self.o_proj = TrainableLinear(heads * shape.v_head_dim, shape.hidden_size, scale=SILENT)
        self.scale = shape.qk_head_dim**-0.5

    def project(self, x: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys [batch, heads, tokens, nope + rope] and values [batch, heads, tokens, v] of x."""
        shape = self._shape
        per_head = (*x.shape[:-1], shape.num_attention_heads, -1)
        query = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))).view(per_head)
        query_nope, query_rope = query.split([shape.qk_nope_head_dim, shape.qk_rope_head_dim], -1)
        latent, key_rope = self.kv_a_proj_with_mqa(x).split([shape.kv_lora_rank, shape.qk_rope_head_dim], -1)
        expanded = self.kv_b_proj(self.kv_a_layernorm(latent)).view(per_head)
        key_nope, value = expanded.split([shape.qk_nope_head_dim, shape.v_head_dim], -1)
        key_rope = rotate(key_rope.unsqueeze(-2), rotary).expand(*key_nope.shape[:-1], -1)
        query = torch.cat([query_nope, rotate(query_rope, rotary)], -1)
        key = torch.cat([key_nope, key_rope], -1)
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)

    def combine(self, attended: Tensor) -> Tensor:
        """The heads' outputs [batch, heads, tokens, v] projected back to the hidden size."""
        return torch.as_tensor(self.o_proj(attended.transpose(1, 2).flatten(-2)))

    def forward(self, x: Tensor, rotary: Tensor) -> Tensor:
        """Causal attention over x [batch, tokens, hidden]."""
        query, key, value = self.project(x, rotary)
        padding = query.shape[-1] - value.shape[-1]  # the fused kernel needs equal widths
        padded = F.pad(value, (0, padding))
        attended = F.scaled_dot_product_attention(query, key, padded, is_causal=True, scale=self.scale)
        return self.combine(attended[..., : value.shape[-1]])


class DenseMLP(nn.Module):
    """The gated feed-forward block of the first layers, and the shared expert."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = TrainableLinear(hidden, width)
        self.up_proj = TrainableLinear(hidden, width)
        self.down_proj = TrainableLinear(width, hidden, scale=SILENT)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The block's output, and an empty load: it has no experts."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)), x.new_zeros(0, dtype=torch.float32)


class TrainableRouter(nn.Module):
    """Scores experts by a sigmoid; a bias that is not trained by gradient balances the choice (noaux_tc)."""

    e_score_correction_bias: Tensor

    def __init__(self, shape: ModelSizes) -> None:
        super().__init__()
        self._top = shape.num_experts_per_tok
        self._factor = shape.routed_scaling_factor
        self.weight = nn.Parameter(torch.randn(shape.n_routed_experts, shape.hidden_size) * shape.hidden_size**-0.5)
        self.register_buffer("e_score_correction_bias", torch.zeros(shape.n_routed_experts))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The weight of every expert for every token, float32 [..., experts], 0 where not chosen; and the counts."""
        scores = F.linear(x.float(), self.weight).sigmoid()
        chosen = (scores + self.e_score_correction_bias).topk(self._top, -1).indices
        mask = torch.zeros_like(scores).scatter(-1, chosen, 1.0)
        weights = scores * mask
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20) * self._factor
        return weights, mask.flatten(0, -2).sum(0)


class TrainableMoE(nn.Module):
    """All experts as one wide block, weighted per token: on a CPU, two large products are faster than many small."""

    def __init__(self, shape: ModelSizes) -> None:
        super().__init__()
        hidden, width, experts = shape.hidden_size, shape.moe_intermediate_size, shape.n_routed_experts
        self.gate = TrainableRouter(shape)
        self.experts_gate = nn.Parameter(torch.randn(experts, width, hidden) * 0.5 * hidden**-0.5)
        self.experts_up = nn.Parameter(torch.randn(experts, width, hidden) * 0.5 * hidden**-0.5)
        self.experts_down = nn.Parameter(torch.randn(experts, hidden, width) * SILENT * width**-0.5)
        self.shared_experts = DenseMLP(hidden, width * shape.n_shared_experts)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The block's output, and how many tokens chose each expert."""
        weights, load = self.gate(x)
        gate = F.linear(x, self.experts_gate.flatten(0, 1).to(x.dtype))
        up = F.linear(x, self.experts_up.flatten(0, 1).to(x.dtype))
        activated = (F.silu(gate) * up).view(*weights.shape, -1)  # [..., experts, width]
        weighted = (activated * weights.unsqueeze(-1).to(x.dtype)).flatten(-2)
        down = self.experts_down.transpose(0, 1).flatten(1).to(x.dtype)  # [hidden, experts x width]
        return F.linear(weighted, down) + self.shared_experts(x)[0], load


class TrainableDecoderLayer(nn.Module):
    """Attention and a feed-forward block, each behind a norm and added to the residual stream."""

    def __init__(self, shape: ModelSizes, dense: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps, dtype)
        self.self_attn = TrainableAttention(shape, dtype)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps, dtype)
        self.mlp = DenseMLP(shape.hidden_size, shape.intermediate_size) if dense else TrainableMoE(shape)

    def forward(self, x: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor]:
        """The residual stream after this layer, float32 [batch, tokens, hidden], and the experts' load."""
        return self.feed_forward(x + self.self_attn(self.input_layernorm(x), rotary))

    def feed_forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The second half of the layer: x plus its feed-forward block, and the experts' load."""
        change, load = self.mlp(self.post_attention_layernorm(x))
        return x + change, load
