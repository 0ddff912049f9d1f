"""Mixture of experts (DeepSeek-V3, arXiv 2412.19437, section 2.1.2), in its letters:

    u   a token's normed input         s   Sigmoid(u e_i), its affinity to expert i    b   the bias of the choice
    g   s of the chosen experts, normalised and scaled: their weights

An expert's output for a token is complete before it is weighted by g. A token's outputs are summed in ascending expert
id, the shared expert last, on the rank that owns the token: so which rank has an expert changes no bit.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from outrider.workers.model.layers import Mlp, gated, sigmoid
from outrider.workers.model.linear import Linear
from outrider.workers.model.spread_experts import SpreadExperts
from outrider.workers.parallel.expert_dispatch import ExpertDispatch
from outrider.workers.parallel.sharing import Columns
from outrider.workers.types.model.model_config import ModelConfig


class Router(nn.Module):
    """The experts of each token, and their weights."""

    def __init__(self, config: ModelConfig, linear: Linear, bias: Tensor) -> None:
        super().__init__()
        self.config = config
        self.linear = linear  # the experts' centroids e_i, float32
        self.bias = nn.Parameter(bias, requires_grad=False)  # b, float32

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """`u` [R, hidden] -> expert ids [R, k], ascending, and their weights g [R, k] in float32."""
        s = sigmoid(self.linear(u.float()))
        ids = self._choose(s + self.bias)
        g = s.gather(1, ids)
        if self.config.norm_topk_prob:
            g = g.div_(g.cumsum(dim=1)[:, -1:].add_(1e-20))
        return ids, g.mul_(self.config.routed_scaling_factor)

    def _choose(self, biased: Tensor) -> Tensor:
        """The best experts of the best groups; equal scores go to the lower id."""
        if self.config.topk_group < self.config.n_group:
            groups = biased.view(
                len(biased), self.config.n_group, biased.shape[1] // self.config.n_group
            )  # [R, groups, experts of a group]
            best_two = groups.sort(dim=-1, descending=True, stable=True).values[..., :2]
            order = (best_two[..., 0] + best_two[..., 1]).sort(dim=-1, descending=True, stable=True).indices
            masked = torch.ones_like(groups, dtype=torch.bool)
            masked.scatter_(1, order[:, : self.config.topk_group, None].expand(-1, -1, groups.shape[2]), False)
            biased = groups.masked_fill(masked, float("-inf")).flatten(1)
        chosen = biased.sort(dim=-1, descending=True, stable=True).indices[:, : self.config.num_experts_per_tok]
        return chosen.sort(dim=-1).values


class Experts(nn.Module):
    """The routed experts that this rank has, by slot; `inner` joins inner activations if experts are split over ranks.

    A slot is an expert, unless whole experts are spread over ranks.
    """

    def __init__(self, experts: Mapping[int, Mlp], inner: Columns | None = None) -> None:
        super().__init__()
        self._experts = dict(experts)
        self._inner = inner

    def use(self, experts: Mapping[int, Mlp]) -> None:
        """Replaces the experts."""
        self._experts = dict(experts)

    def forward(self, rows: Tensor, slots: Tensor) -> Tensor:
        """`rows` [pairs, hidden], and the slot of each, [pairs], in any order -> [pairs, columns]."""
        order = slots.argsort(stable=True)
        own, counts = (each.tolist() for each in torch.unique(slots, return_counts=True))
        if not own:
            return rows
        experts = [self._experts[slot] for slot in own]
        shares = zip(experts, rows.index_select(0, order).split(counts), strict=True)
        hidden = gated(torch.cat([expert.gate_up(share) for expert, share in shares]))
        if self._inner is not None:
            hidden = self._inner(hidden)
        outputs = torch.cat([e.down(share) for e, share in zip(experts, hidden.split(counts), strict=True)])
        return torch.empty_like(outputs).index_copy_(0, order, outputs)


class MoE(nn.Module):
    """The sum of g_i FFN_i(u) over the chosen experts, plus the shared expert: this rank's columns of it."""

    def __init__(
        self,
        router: Router,
        experts: Experts,
        shared: Mlp | None,
        dispatch: ExpertDispatch,
        spread: SpreadExperts[Mlp] | None = None,
    ) -> None:
        super().__init__()
        self.router = router
        self.experts = experts
        self.shared = shared
        self.dispatch = dispatch
        self.spread = spread

    def forward(self, u: Tensor, positions: Tensor) -> Tensor:
        """`u` [R, hidden] of rows at `positions` [R] -> [R, own columns of hidden]."""
        ids, g = self.router(u)
        slots = ids if self.spread is None else self.spread.route(ids, positions)
        outputs = self.dispatch(u, slots, self.experts)  # FFN_i(u) [R, k, own columns]
        weighted = (outputs * g.unsqueeze(-1)).to(u.dtype)
        total: Tensor = weighted[:, 0]
        for place in range(1, weighted.shape[1]):
            total = total + weighted[:, place]
        return total if self.shared is None else total + self.shared.forward(u)


def spread_experts(*modules: nn.Module | None) -> tuple[SpreadExperts[Mlp], ...]:
    """Those of every layer in `modules`, in order."""
    layers = (layer for module in modules if module is not None for layer in module.modules())
    return tuple(layer.spread for layer in layers if isinstance(layer, MoE) and layer.spread is not None)
