"""y = x W^T for small and large batches; W is FP8 with a scale per 128 x 128 block, or 16 or 32 bits without scales.

x [M, K] row-major, W [N, K] row-major, scales [ceil(N / 128), ceil(K / 128)], y [M, N].

Operands are swapped: a program computes BO outputs (the M of the tensor core, at least 64) of BR rows (its N, from
16), so that small batches waste little. Only BR depends on the batch. Order of sums, fixed by the model: blocks of 128
along K from first to last; within a block, the tensor core's order over 128 products; each FP8 block's sum is scaled
and added to a float32 accumulator. So a row's bits do not depend on its batch.

With FP8 weights, x is quantised to FP8 too, with one scale per 128 values of a row: while it is loaded in small
batches, by a launch of its own (quantize.py) in large ones. Both give the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from outrider.kernels import reference
from outrider.kernels.gpu.language import INTERPRETED, ceil_div, jit, power_of_two, tl
from outrider.kernels.gpu.ops import define
from outrider.kernels.gpu.quantize import launch as quantize
from outrider.kernels.gpu.rounding import quantized

FEW_ROWS = 64  # above, x is quantised by a launch of its own
_MOST_ROWS = 128  # per program
_NARROW = 512  # up to so many outputs, programs are smaller, so that there are enough of them


@jit
def product(X, XS, W, WS, m, valid, n, N, K, FP8: tl.constexpr, READY: tl.constexpr, INTERPRETED: tl.constexpr,
            BR: tl.constexpr, BO: tl.constexpr) -> tl.tensor:  # fmt: skip
    """The tile [BO, BR] of W x^T, float32: outputs `n` [BO] of rows `m` [BR]; zeros for rows that are not `valid`."""
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
            if INTERPRETED:  # the interpreter's bfloat16 products are wrong
                w, x = w.to(tl.float32), x.to(tl.float32)
            total = tl.dot(w, x, total, input_precision="ieee")
    return total


@jit
def _linear(X, XS, W, WS, Y, M, N, K, FP8: tl.constexpr, READY: tl.constexpr, INTERPRETED: tl.constexpr,
            BR: tl.constexpr, BO: tl.constexpr) -> None:  # fmt: skip
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
    """Rows per program."""
    return min(max(16, power_of_two(rows)), _MOST_ROWS)


linear = define(
    "linear(Tensor x, Tensor weight, Tensor? scale, bool wide) -> Tensor", launch, reference.linear
)  # `wide`: y is float32 for any type of x
