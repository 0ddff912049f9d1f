"""Merges the splits of attention, and projects the result out of the latent space: each head's W^UV.

parts [splits, R, H, D] and logs [splits, R, H] (mla.py), seen [R, 2], value_up [H, D, v] -> [R, H v]. A program
computes 16 rows of one head. Order of sums: a row's splits in order, in float32; then one product over all D.
"""

from __future__ import annotations

from torch import Tensor

from outrider.kernels import reference
from outrider.kernels.gpu.language import INTERPRETED, ceil_div, jit, tl
from outrider.kernels.gpu.mla import SPLIT
from outrider.kernels.gpu.ops import define

ROWS = 16


@jit
def _values(PARTS, LOGS, SEEN, UP, OUT, R, H: tl.constexpr, D: tl.constexpr, V: tl.constexpr,
            SPLIT: tl.constexpr, ROWS: tl.constexpr, BD: tl.constexpr, INTERPRETED: tl.constexpr) -> None:  # fmt: skip
    head = tl.program_id(0)
    m = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    valid = m < R
    own = tl.cdiv(tl.load(SEEN + m * 2 + 1, mask=valid, other=0), SPLIT)
    most = tl.max(own, 0)
    place = m.to(tl.int64) * H + head
    step = tl.cast(R, tl.int64) * H  # R is a constant if it is 1
    peak = tl.full((ROWS,), -1e30, tl.float32)
    for split in range(most):
        peak = tl.maximum(peak, tl.load(LOGS + split * step + place, mask=split < own, other=-1e30))
    v, b = tl.arange(0, V), tl.arange(0, BD)
    out = tl.zeros((ROWS, V), tl.float32)
    for part in tl.static_range(D // BD):
        d = part * BD + b
        total = tl.zeros((ROWS,), tl.float32)
        mean = tl.zeros((ROWS, BD), tl.float32)
        for split in range(most):
            log = tl.load(LOGS + split * step + place, mask=split < own, other=-1e30)
            weight = tl.where(split < own, tl.exp(log - peak), 0.0)
            at = PARTS + (split * step + place)[:, None] * D + d[None, :]
            mean += tl.load(at, mask=(split < own)[:, None], other=0.0) * weight[:, None]
            total += weight
        mean = mean / tl.maximum(total, 1e-30)[:, None]
        up = tl.load(UP + head * D * V + d[:, None] * V + v[None, :])
        gathered = mean.to(up.dtype)
        if INTERPRETED:
            gathered, up = mean, up.to(tl.float32)
        out = tl.dot(gathered, up, out, input_precision="ieee")
    tl.store(OUT + (m.to(tl.int64) * H + head)[:, None] * V + v[None, :], out.to(OUT.dtype.element_ty),
             mask=valid[:, None])  # fmt: skip


def launch(parts: Tensor, logs: Tensor, seen: Tensor, value_up: Tensor) -> Tensor:
    _, rows, heads, rank = parts.shape
    size = value_up.shape[2]
    out = value_up.new_empty(rows, heads * size)
    if rows:
        _values[heads, ceil_div(rows, ROWS)](
            parts, logs, seen, value_up, out, rows, H=heads, D=rank, V=size, SPLIT=SPLIT, ROWS=ROWS,
            BD=min(rank, 128), INTERPRETED=INTERPRETED,
        )  # fmt: skip
    return out


values = define("values(Tensor parts, Tensor logs, Tensor seen, Tensor value_up) -> Tensor", launch, reference.values)
