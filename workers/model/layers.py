"""Parts that every layer uses: exact pointwise functions, RMSNorm, the gated MLP."""

import torch
from torch import Tensor, nn

from outrider.workers.model.linear import Linear
from outrider.workers.parallel.sharing import Columns

LATENT_NORM_EPS = 1e-6  # of q_a_layernorm and kv_a_layernorm; they do not use rms_norm_eps


def sigmoid(x: Tensor) -> Tensor:
    """Elementwise, with the same bits at every index: torch.sigmoid rounds differently in the tail of a vector loop."""
    return x.neg().exp_().add_(1.0).reciprocal_()


def gated(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of [..., gate then up], with the same bits at every index."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return sigmoid(gate).mul_(gate).mul_(up).to(gate_up.dtype)


class RmsNorm(nn.Module):
    """Root-mean-square norm: float32 inside, cast back, then times the weight.

    Torch sums a row of up to 32768 values in one order, for any number of rows.
    """

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = (wide * wide).mean(dim=-1, keepdim=True).add_(self.eps).rsqrt_()
        return (wide * scale).to(x.dtype).mul_(self.weight)


class Mlp(nn.Module):
    """down(silu(gate(x)) * up(x)); gate and up are one product.

    If several ranks share it, each has a slice of the inner activations, which `inner` joins, and a slice of the
    outputs.
    """

    def __init__(self, gate_up: Linear, down: Linear, inner: Columns | None = None) -> None:
        super().__init__()
        self.gate_up = gate_up
        self.down = down
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """`x` [R, hidden] -> [R, own columns of hidden]."""
        made = gated(self.gate_up(x))
        out: Tensor = self.down(made if self.inner is None else self.inner(made))
        return out


class SharedProduct(nn.Module):
    """A product whose outputs are split over ranks, except the first `own`, which only this rank needs."""

    def __init__(self, linear: Linear, columns: Columns, own: int = 0) -> None:
        super().__init__()
        self.linear, self.columns, self.own = linear, columns, own

    def forward(self, x: Tensor) -> Tensor:
        """`x` [R, inputs] -> [R, own outputs, then the joined outputs of all ranks]."""
        made: Tensor = self.linear(x)
        if not self.own:
            return self.columns(made)
        return torch.cat([made[:, : self.own], self.columns(made[:, self.own :])], dim=1)
