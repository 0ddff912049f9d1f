"""The layout of the MLA KV cache: a slot per token and layer, [latent, rotary key].

In the model's dtype a slot is [D + r] values. In FP8 it is bytes: D latent values in e4m3, a float32 scale per 128 of
them (or per D, if smaller), and r rotary values in the model's dtype. R1 then takes 656 bytes per slot instead of
1152.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from outrider.kernels.gpu.rounding import GROUP


class Slots(NamedTuple):
    """Views of a cache, by slot."""

    latents: Tensor  # [slots, D]
    scales: Tensor | None  # [slots, groups] float32; None without FP8
    rotary: Tensor  # [slots, r]


def slot_shape(rank: int, rope: int, dtype: torch.dtype, fp8: bool) -> tuple[int, torch.dtype]:
    """Elements per slot, and their dtype."""
    if not fp8:
        return rank + rope, dtype
    return rank + 4 * -(-rank // GROUP) + rope * dtype.itemsize, torch.uint8


def slots_of(cache: Tensor, rank: int, dtype: torch.dtype) -> Slots:
    """The parts of `cache` [slots, width], which is FP8 if its dtype is uint8."""
    if cache.dtype != torch.uint8:
        return Slots(cache[:, :rank], None, cache[:, rank:])
    scales = rank + 4 * -(-rank // GROUP)
    latents, groups, rotary = cache[:, :rank], cache[:, rank:scales], cache[:, scales:]
    return Slots(latents.view(torch.float8_e4m3fn), groups.view(torch.float32), rotary.view(dtype))


def strides(latents: Tensor, scales: Tensor | None, rotary: Tensor) -> dict[str, int | bool]:
    """A kernel's constants for this layout."""
    return {
        "GROUP": min(latents.shape[1], GROUP), "LATENT_STRIDE": latents.stride(0), "ROTARY_STRIDE": rotary.stride(0),
        "SCALE_STRIDE": 0 if scales is None else scales.stride(0), "FP8": scales is not None,
    }  # fmt: skip
