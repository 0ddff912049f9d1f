"""Activations in 8 bits: every 128 values of a row share a scale (DeepSeek-V3, arXiv 2412.19437, section 3.3).

x [M, K] -> q [M, K] e4m3, s [M, ceil(K / 128)] float32, x ~ q s. One program does one row's group of 128; nothing is
summed. Only for many rows: products over few quantise as they read (linear.py), with the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from outrider.kernels import reference
from outrider.kernels.gpu.language import INTERPRETED, ceil_div, jit, tl
from outrider.kernels.gpu.ops import define
from outrider.kernels.gpu.rounding import GROUP, quantized


@jit
def _quantize(X, Q, S, M, K, INTERPRETED: tl.constexpr, ROWS: tl.constexpr):
    m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    group = tl.program_id(1)
    k = group * 128 + tl.arange(0, 128)
    inside = (m < M)[:, None] & (k < K)[None, :]
    at = m.to(tl.int64)[:, None] * K + k[None, :]
    q, s = quantized(tl.load(X + at, mask=inside, other=0.0).to(tl.float32), 1, INTERPRETED)
    tl.store(Q + at, q, mask=inside)
    tl.store(S + m * tl.num_programs(1) + group, s, mask=m < M)


def launch(x: Tensor) -> tuple[Tensor, Tensor]:
    rows, width = x.shape
    groups = ceil_div(width, GROUP)
    values, scales = torch.empty_like(x, dtype=torch.float8_e4m3fn), x.new_empty(rows, groups, dtype=torch.float32)
    _quantize[ceil_div(rows, 16), groups](x, values, scales, rows, width, INTERPRETED, ROWS=16)
    return values, scales


quantize_rows = define("quantize_rows(Tensor x) -> (Tensor, Tensor)", launch, reference.quantize_rows)
