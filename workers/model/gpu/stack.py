"""One weight, and experts of the same width in one stack, as the GPU kernels read them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from outrider.kernels.gpu.experts import experts
from outrider.kernels.gpu.linear import linear


@dataclass(frozen=True, slots=True)
class Weight:
    """[outputs, inputs] or [experts, outputs, inputs]. `scale`: one per 128 x 128 block if FP8, else None."""

    values: Tensor
    scale: Tensor | None = None

    def __call__(self, x: Tensor, *, wide: bool = False) -> Tensor:
        """x [R, inputs] -> [R, outputs], in x's dtype, or in float32 if `wide`."""
        out: Tensor = linear(x, self.values, self.scale, wide)
        return out

    def put(self, place: int, other: "Weight") -> None:
        """Copies the one expert of `other`, values and scales, to `place`."""
        self.values[place].copy_(other.values[0])
        if self.scale is not None and other.scale is not None:
            self.scale[place].copy_(other.scale[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Experts of the same width. `first`: the first one's id."""

    gate_up: Weight  # [experts, 2 * width, hidden]
    down: Weight  # [experts, hidden, width]
    first: int = 0

    @property
    def device(self) -> torch.device:
        return self.down.values.device

    def __call__(self, x: Tensor, places: Tensor, *, whole: bool) -> Tensor:
        """x [R, hidden] through the experts `places` [R, k] of each row -> [R * k, hidden], not yet weighted.

        Zeros where there is no such place in the stack; if `whole`, nobody reads these, and no zeros are written.
        """
        gate_up, down = self.gate_up, self.down
        out: Tensor = experts(x, places, gate_up.values, gate_up.scale, down.values, down.scale, whole)
        return out

    def put(self, place: int, other: "Stack") -> None:
        """Copies the one expert of `other` to `place`."""
        self.gate_up.put(place, other.gate_up)
        self.down.put(place, other.down)
