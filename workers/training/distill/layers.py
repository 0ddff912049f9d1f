"""Trainable layers of an MTP module, for any DeepSeek-V3 shape. Parameters are named as in the checkpoint.

Every parameter belongs to a module whose own `forward` uses it, and all ranks run the same modules in the same order
for any tokens. ZeRO 3 needs both, since it gathers a module's parameters before the module runs. Routed experts are in
groups, with one stacked tensor per projection. ZeRO 3 gathers one group at a time (names.py maps it to the
checkpoint).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from outrider.workers.model.layers import LATENT_NORM_EPS
from outrider.workers.types.model.model_config import ModelConfig

Heads = tuple[Tensor, Tensor, Tensor]  # queries, keys [batch, heads, tokens, nope + rope], values [.., v]


class DistilledLinear(nn.Module):
    """A matrix without bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class DistilledRmsNorm(nn.Module):
    """Root-mean-square norm, float32 inside."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self._eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self._eps)
        return scaled.to(x.dtype) * self.weight


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotates pairs (2i, 2i+1) of `x` [batch, tokens, heads, rope] by `rotation` [tokens, 2, rope] (rotary_table)."""
    cos, sin = rotation[:, None, 0], rotation[:, None, 1]  # [tokens, 1, rope]
    wide = x.float()
    partner = wide.view(*wide.shape[:-1], -1, 2).flip(-1).flatten(-2)
    return (wide * cos + partner * sin).to(x.dtype)


class DistilledAttention(nn.Module):
    """The projections of multi-head latent attention in expanded form; attention itself is in unrolled.py."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, heads, rank = config.hidden_size, config.num_attention_heads, config.q_lora_rank
        self._config = config
        queries = heads * config.qk_head_dim
        if rank is None:
            self.q_proj = DistilledLinear(hidden, queries)
        else:
            self.q_a_proj = DistilledLinear(hidden, rank)
            self.q_a_layernorm = DistilledRmsNorm(rank, LATENT_NORM_EPS)
            self.q_b_proj = DistilledLinear(rank, queries)
        self.kv_a_proj_with_mqa = DistilledLinear(hidden, config.head_dim_latent)
        self.kv_a_layernorm = DistilledRmsNorm(config.kv_lora_rank, LATENT_NORM_EPS)
        self.kv_b_proj = DistilledLinear(config.kv_lora_rank, heads * (config.qk_nope_head_dim + config.v_head_dim))
        self.o_proj = DistilledLinear(heads * config.v_head_dim, hidden)

    def project(self, x: Tensor, rotation: Tensor) -> Heads:
        """Queries, keys and values of `x` [batch, tokens, hidden], normed."""
        config = self._config
        per_head = (*x.shape[:-1], config.num_attention_heads, -1)
        low = self.q_proj(x) if config.q_lora_rank is None else self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        query_nope, query_rope = low.view(per_head).split([config.qk_nope_head_dim, config.qk_rope_head_dim], -1)
        latent, key_rope = self.kv_a_proj_with_mqa(x).split([config.kv_lora_rank, config.qk_rope_head_dim], -1)
        expanded = self.kv_b_proj(self.kv_a_layernorm(latent)).view(per_head)
        key_nope, value = expanded.split([config.qk_nope_head_dim, config.v_head_dim], -1)
        key_rope = rotate(key_rope.unsqueeze(-2), rotation).expand(*key_nope.shape[:-1], -1)
        query = torch.cat([query_nope, rotate(query_rope, rotation)], -1)
        key = torch.cat([key_nope, key_rope], -1)
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)

    def combine(self, attended: Tensor) -> Tensor:
        """The heads' outputs [batch, heads, tokens, v] -> [batch, tokens, hidden]."""
        return torch.as_tensor(self.o_proj(attended.transpose(1, 2).flatten(-2)))


class DistilledMlp(nn.Module):
    """down(silu(gate(x)) * up(x)): a dense layer's block, or the shared expert."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = DistilledLinear(hidden, width)
        self.up_proj = DistilledLinear(hidden, width)
        self.down_proj = DistilledLinear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)))


class DistilledRouter(nn.Module):
    """The experts of each token, and their weights (arXiv 2412.19437, section 2.1.2).

    The balancing bias is neither a parameter nor a buffer: it stays float32 when the module is cast.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self._config = config
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.bias = torch.zeros(config.n_routed_experts)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`x` [rows, hidden] -> ids [rows, chosen], and weights [rows, chosen] in float32."""
        config = self._config
        scores = F.linear(x.float(), self.weight.float()).sigmoid()
        with torch.no_grad():
            ids = self._choose(scores + self.bias.to(x.device))
        weights = scores.gather(1, ids)
        if config.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return ids, weights * config.routed_scaling_factor

    def _choose(self, biased: Tensor) -> Tensor:
        """The best experts of the best groups; equal scores go to the lower id."""
        config = self._config
        if config.topk_group < config.n_group:
            groups = biased.view(len(biased), config.n_group, -1)  # [rows, groups, experts of a group]
            best_two = groups.topk(2, dim=-1).values.sum(-1)
            kept = best_two.sort(dim=-1, descending=True, stable=True).indices[:, : config.topk_group]
            dropped = torch.ones_like(groups, dtype=torch.bool)
            dropped.scatter_(1, kept[..., None].expand(-1, -1, groups.shape[2]), False)
            biased = groups.masked_fill(dropped, float("-inf")).flatten(1)
        return biased.sort(dim=-1, descending=True, stable=True).indices[:, : config.num_experts_per_tok]


class ExpertGroup(nn.Module):
    """Consecutive experts, stacked."""

    def __init__(self, first: int, count: int, hidden: int, width: int) -> None:
        super().__init__()
        self.first, self.count = first, count
        self.gate_proj = nn.Parameter(torch.empty(count, width, hidden))
        self.up_proj = nn.Parameter(torch.empty(count, width, hidden))
        self.down_proj = nn.Parameter(torch.empty(count, hidden, width))

    def forward(self, rows: Tensor, counts: list[int]) -> Tensor:
        """`rows` [sum(counts), hidden], sorted by expert, `counts[e]` of them for the group's expert e -> the same.

        Computed again in the backward pass: else it would keep the experts themselves, gathered, for every step.
        """
        out = checkpoint(self._outputs, rows, counts, use_reentrant=False, preserve_rng_state=False)
        return torch.as_tensor(out)

    def _outputs(self, rows: Tensor, counts: list[int]) -> Tensor:
        parts = torch.split(rows, counts)
        weights = zip(self.gate_proj.unbind(), self.up_proj.unbind(), self.down_proj.unbind(), strict=True)
        outputs = [
            F.linear(F.silu(F.linear(part, gate)) * F.linear(part, up), down)
            for part, (gate, up, down) in zip(parts, weights, strict=True)
        ]
        return torch.cat(outputs)


class DistilledMoE(nn.Module):
    """The weighted sum of routed experts, and the shared expert."""

    def __init__(self, config: ModelConfig, group_size: int) -> None:
        super().__init__()
        hidden, width, experts = config.hidden_size, config.moe_intermediate_size, config.n_routed_experts
        self.gate = DistilledRouter(config)
        self.groups = nn.ModuleList(
            ExpertGroup(first, min(group_size, experts - first), hidden, width)
            for first in range(0, experts, group_size)
        )
        self.shared_experts = DistilledMlp(hidden, width * config.n_shared_experts) if config.n_shared_experts else None

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        ids, weights = self.gate(rows)
        order = ids.flatten().argsort(stable=True)
        places = order // ids.shape[1]  # the row of every (row, expert) pair, sorted by expert
        counts = torch.bincount(ids.flatten(), minlength=len(self.gate.bias)).tolist()
        sizes = [sum(counts[group.first : group.first + group.count]) for group in self._expert_groups()]
        outputs = torch.cat(
            [
                group(part, counts[group.first : group.first + group.count])
                for group, part in zip(self._expert_groups(), torch.split(rows[places], sizes), strict=True)
            ]
        )
        weighted = outputs * weights.flatten()[order][:, None].to(outputs.dtype)
        total = torch.zeros_like(rows).index_add(0, places, weighted).view_as(x)
        return total if self.shared_experts is None else total + self.shared_experts(x)

    def _expert_groups(self) -> list[ExpertGroup]:
        return [group for group in self.groups if isinstance(group, ExpertGroup)]
