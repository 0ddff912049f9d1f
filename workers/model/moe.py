"""Sigmoid routing with groups and a choosing bias, and experts whose outputs stay whole until the token's owner sums.

An expert's output for a token is complete before it is weighted; a token's outputs are summed in ascending expert id,
the shared expert last. So where experts live changes nothing.
"""

import itertools

import torch
from torch import Tensor, nn

from outrider.workers.model.config import ModelConfig
from outrider.workers.model.layers import Mlp, gated, sigmoid
from outrider.workers.model.linear import Linear


class Router(nn.Module):
    """Which experts a token goes to, and with what weight (DeepSeek-V3, arXiv 2412.19437, section 2.1.2)."""

    def __init__(self, config: ModelConfig, linear: Linear, bias: Tensor) -> None:
        super().__init__()
        self.config = config
        self.linear = linear  # float32
        self.bias = nn.Parameter(bias, requires_grad=False)  # float32; chooses, never weighs

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`x` [R, hidden] -> expert ids [R, k], ascending, and their weights [R, k] in float32."""
        scores = sigmoid(self.linear(x.float()))
        ids = self._choose(scores + self.bias)
        weights = scores.gather(1, ids)
        if self.config.norm_topk_prob:
            weights = weights.div_(weights.cumsum(dim=1)[:, -1:].add_(1e-20))
        return ids, weights.mul_(self.config.routed_scaling_factor)

    def _choose(self, biased: Tensor) -> Tensor:
        """The best experts of the best groups; equal scores go to the lower id."""
        if self.config.topk_group < self.config.n_group:
            groups = biased.view(len(biased), self.config.n_group, -1)  # [R, groups, experts of a group]
            best_two = groups.sort(dim=-1, descending=True, stable=True).values[..., :2]
            order = (best_two[..., 0] + best_two[..., 1]).sort(dim=-1, descending=True, stable=True).indices
            masked = torch.ones_like(groups, dtype=torch.bool)
            masked.scatter_(1, order[:, : self.config.topk_group, None].expand(-1, -1, groups.shape[2]), False)
            biased = groups.masked_fill(masked, float("-inf")).flatten(1)
        chosen = biased.sort(dim=-1, descending=True, stable=True).indices[:, : self.config.num_experts_per_tok]
        return chosen.sort(dim=-1).values


class Experts(nn.Module):
    """The routed experts' outputs, whole and unsummed per (token, expert)."""

    def __init__(self, experts: list[Mlp]) -> None:
        super().__init__()
        self._experts = experts

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        """`x` [R, hidden], `ids` [R, k] -> [R, k, hidden]. Pairs go sorted by expert: one product for each."""
        tokens, places = ids.shape
        if tokens == 1:  # its experts are sorted as they are
            counts = dict.fromkeys(ids[0].tolist(), 1)
            return self._outputs(x.expand(places, -1), counts).view(1, places, -1)
        order = ids.flatten().argsort(stable=True)
        counts = dict(enumerate(torch.bincount(ids.flatten(), minlength=len(self._experts)).tolist()))
        outputs = self._outputs(x.index_select(0, order // places), counts)
        return torch.empty_like(outputs).index_copy_(0, order, outputs).view(tokens, places, -1)

    def _outputs(self, rows: Tensor, counts: dict[int, int]) -> Tensor:
        """`rows` [pairs, hidden], `counts[e]` of them for expert e, in the order of `counts` -> [pairs, hidden]."""
        ends = itertools.accumulate(counts.values())
        shares = [
            (self._experts[e], slice(end - counts[e], end)) for e, end in zip(counts, ends, strict=True) if counts[e]
        ]
        hidden = gated(torch.cat([expert.gate_up(rows[span]) for expert, span in shares]))
        return torch.cat([expert.down(hidden[span]) for expert, span in shares])


class MoE(nn.Module):
    """Routed experts by their weights, then the shared expert."""

    def __init__(self, router: Router, experts: Experts, shared: Mlp | None) -> None:
        super().__init__()
        self.router = router
        self.experts = experts
        self.shared = shared

    def forward(self, x: Tensor) -> Tensor:
        ids, weights = self.router(x)
        outputs = (self.experts(x, ids) * weights.unsqueeze(-1)).to(x.dtype)  # [R, k, hidden]
        total: Tensor = outputs[:, 0]
        for place in range(1, outputs.shape[1]):
            total = total + outputs[:, place]
        return total if self.shared is None else total + self.shared.forward(x)
