"""Muon (Keller Jordan, 2024) for many small matrices: equal shapes are orthogonalised together in batched products.

torch.optim.Muon processes matrices one by one and accepts no stacks. With scout's hundreds of experts that would take
longer than the rest of a step. The maths is the same: Nesterov momentum, five Newton-Schulz steps, lr x sqrt(max(1,
rows/columns)).
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalised(matrices: Tensor, steps: int = 5) -> Tensor:
    """Each of `matrices` [count, rows, columns] with its singular values pushed towards 1, in bfloat16."""
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = (matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()
    x = x.transpose(-2, -1) if tall else x
    for _ in range(steps):
        gram = x @ x.transpose(-2, -1)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(-2, -1) if tall else x


class Muon(torch.optim.Optimizer):
    """Muon over parameters of two dimensions, or three where the first counts independent matrices."""

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.1
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure: nothing here needs one
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape[-2:]].append(parameter)
            for parameters in by_shape.values():
                self._update(parameters, group["lr"], group["momentum"], group["weight_decay"])

    def _update(self, parameters: list[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> None:
        directions = torch.cat([self._direction(p, momentum).reshape(-1, *p.shape[-2:]) for p in parameters])
        rows, columns = directions.shape[-2:]
        updates = orthogonalised(directions).float() * -lr * max(1.0, rows / columns) ** 0.5
        counts = [p.shape[0] if p.dim() == 3 else 1 for p in parameters]
        for parameter, update in zip(parameters, updates.split(counts), strict=True):
            parameter.mul_(1 - lr * weight_decay).add_(update.view_as(parameter))

    def _direction(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """Nesterov's look-ahead of the gradient's running mean."""
        assert parameter.grad is not None
        mean = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
        mean.lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(mean, momentum)
