"""DeepSeek's block-scaled FP8: every block of a weight shares one float32 factor, `weight_scale_inv`."""

import torch
from torch import Tensor
from torch.nn import functional

_LARGEST = 448.0  # of e4m3


def dequantize(
    values: Tensor, scales: Tensor, block: tuple[int, int], *, first_row: int = 0, first_column: int = 0
) -> Tensor:
    """float32 of e4m3 `values` [rows, columns], a slice at `first_row` and `first_column` of the whole weight.

    `scales` are the whole weight's, [ceil(rows / block rows), ceil(columns / block columns)].
    """
    rows = torch.arange(first_row, first_row + values.shape[0]) // block[0]
    columns = torch.arange(first_column, first_column + values.shape[1]) // block[1]
    return values.to(torch.float32).mul_(scales.to(torch.float32)[rows][:, columns])


def quantize(values: Tensor, block: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """`values` [rows, columns] as e4m3, and its scales [ceil(rows / block rows), ceil(columns / block columns)].

    A block's largest value becomes the largest e4m3 value; a block of zeros has scale 1.
    """
    rows, columns = values.shape
    padded = functional.pad(values.float(), (0, -columns % block[1], 0, -rows % block[0]))
    blocks = padded.view(padded.shape[0] // block[0], block[0], padded.shape[1] // block[1], block[1])
    largest = blocks.abs().amax(dim=(1, 3))
    scales = torch.where(largest > 0, largest / _LARGEST, torch.ones_like(largest))
    scaled = (blocks / scales[:, None, :, None]).clamp(-_LARGEST, _LARGEST).view_as(padded)[:rows, :columns]
    return scaled.to(torch.float8_e4m3fn), scales
