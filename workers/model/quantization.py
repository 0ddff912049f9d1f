"""Undoes DeepSeek's block-scaled FP8: every block of a weight shares one float32 factor, `weight_scale_inv`."""

import torch
from torch import Tensor


def dequantize(values: Tensor, scales: Tensor, block: tuple[int, int], *, first_row: int = 0) -> Tensor:
    """float32 of e4m3 `values` [rows, columns], whose rows begin at `first_row` of the whole weight.

    `scales` are the whole weight's, [ceil(rows / block rows), ceil(columns / block columns)].
    """
    rows = torch.arange(first_row, first_row + values.shape[0]) // block[0]
    columns = torch.arange(values.shape[1]) // block[1]
    return values.to(torch.float32).mul_(scales.to(torch.float32)[rows][:, columns])
