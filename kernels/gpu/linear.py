"""y = x W^T for few rows and for many, of weights in FP8 with a scale for every 128 x 128 block, or as wide as x.

x [M, K] row-major, W [N, K] row-major, scales [ceil(N / 128), ceil(K / 128)], y [M, N].

Operands are swapped: a program makes BO outputs (the tensor core's M, which is 64 wide or more) of BR rows (its N,
from 16 on), so that few rows waste nothing. Only BR depends on the number of rows. Order of sums, fixed by the model:
K in blocks of 128 from the first to the last; inside a block as the tensor core sums 128 products; each FP8 block's sum
is scaled and added to the float32 total. So a row's bits do not depend on its company.

Of weights in FP8, x is quantised like them, 128 values of a row sharing a scale: while it is read where rows are few,
before (quantize.py) where they are many. Both have the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from outrider.kernels import reference
from outrider.kernels.gpu.language import INTERPRETED, ceil_div, jit, power_of_two, tl
from outrider.kernels.gpu.ops import define
from outrider.kernels.gpu.quantize import launch as quantize
from outrider.kernels.gpu.rounding import quantized

FEW_ROWS = 64  # from here on x is quantised once, before
_MOST_ROWS = 128  # of a program
_NARROW = 512  # a product of so few outputs has more programs that are smaller


@jit
def product(X, XS, W, WS, m, valid, n, N, K, FP8: tl.constexpr, READY: tl.constexpr, INTERPRETED: tl.constexpr,
            BR: tl.constexpr, BO: tl.constexpr):  # fmt: skip
    """The tile [BO, BR] of W x^T: outputs `n` [BO] of rows `m` [BR], float32. Rows that are not `valid` are zeros."""
    k = tl.arange(0, 128)
    groups = tl.cdiv(K, 128)
    total = tl.zeros((BO, BR), dtype=tl.float32)
    row = m.to(tl.int64) * K
    output = n.to(tl.int64) * K
    for block in range(groups):
        at = block * 128 + k
        w = tl.load(W + output[:, None] + at[None, :], mask=(n < N)[:, None] & (at < K)[None, :], other=0.0)
        x = tl.load(X + row[None, :] + at[:, None], mask=valid[None, :] & (at < K)[:, None], other=0.0)
        if FP8:
            if READY:
                xs = tl.load(XS + m * groups + block, mask=valid, other=0.0)
            else:
                x, xs = quantized(x.to(tl.float32), 0, INTERPRETED)
            ws = tl.load(WS + (n // 128) * groups + block, mask=n < N, other=0.0)
            total += tl.dot(w, x) * (ws[:, None] * xs[None, :])
        else:
            if INTERPRETED:  # whose own products of bfloat16 are wrong
                w, x = w.to(tl.float32), x.to(tl.float32)
            total = tl.dot(w, x, total, input_precision="ieee")
    return total


@jit
def _linear(X, XS, W, WS, Y, M, N, K, FP8: tl.constexpr, READY: tl.constexpr, INTERPRETED: tl.constexpr,
            BR: tl.constexpr, BO: tl.constexpr):  # fmt: skip
    n = tl.program_id(0) * BO + tl.arange(0, BO)
    m = tl.program_id(1) * BR + tl.arange(0, BR)
    total = product(X, XS, W, WS, m, m < M, n, N, K, FP8, READY, INTERPRETED, BR, BO)
    inside = (n < N)[:, None] & (m < M)[None, :]
    tl.store(Y + m.to(tl.int64)[None, :] * N + n[:, None], total.to(Y.dtype.element_ty), mask=inside)


def launch(x: Tensor, weight: Tensor, scale: Tensor | None, wide: bool) -> Tensor:
    rows, inputs = x.shape
    outputs = weight.shape[0]
    out = x.new_empty(rows, outputs, dtype=torch.float32 if wide else x.dtype)
    if not rows:
        return out
    ready = scale is not None and rows > FEW_ROWS
    values, scales = quantize(x) if ready else (x, None)
    rows_each = row_tile(rows)
    outputs_each = 16 if outputs <= _NARROW else 64
    grid = ceil_div(outputs, outputs_each), ceil_div(rows, rows_each)
    _linear[grid](
        values, scales, weight, scale, out, rows, outputs, inputs, FP8=scale is not None, READY=ready,
        INTERPRETED=INTERPRETED, BR=rows_each, BO=outputs_each, num_warps=8 if rows_each > 64 else 4,
        num_stages=4 if rows_each <= 32 else 3,
    )  # fmt: skip
    return out


def row_tile(rows: int) -> int:
    """How many rows a program takes."""
    return min(max(16, power_of_two(rows)), _MOST_ROWS)


linear = define(
    "linear(Tensor x, Tensor weight, Tensor? scale, bool wide) -> Tensor", launch, reference.linear
)  # `wide`: y in float32, whatever x is
