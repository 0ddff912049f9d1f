"""Queries as they meet the latents: each head's nope part through its W^UK, its rotary part turned.

q [R, H (n + r)] -> [R, H, D + r]; key_up [H, n, D]. A program does 16 rows of one head and a part of D: one product
over all n, so a row's order of sums is the tensor core's over n.
"""

from __future__ import annotations

from torch import Tensor

from outrider.kernels import reference
from outrider.kernels.gpu.language import INTERPRETED, ceil_div, jit, tl
from outrider.kernels.gpu.ops import define

ROWS = 16


@jit
def _queries(Q, UP, TABLE, POSITIONS, OUT, R, H: tl.constexpr, N: tl.constexpr, ROPE: tl.constexpr, D: tl.constexpr,
             BD: tl.constexpr, ROWS: tl.constexpr, INTERPRETED: tl.constexpr):  # fmt: skip
    head, part = tl.program_id(0), tl.program_id(1)
    m = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    there = m < R
    row = m.to(tl.int64)
    source = Q + row[:, None] * (H * (N + ROPE)) + head * (N + ROPE)
    target = OUT + row[:, None] * (H * (D + ROPE)) + head * (D + ROPE)
    n = tl.arange(0, N)
    d = part * BD + tl.arange(0, BD)
    q = tl.load(source + n[None, :], mask=there[:, None], other=0.0)
    up = tl.load(UP + head * N * D + n[:, None] * D + d[None, :])
    if INTERPRETED:
        q, up = q.to(tl.float32), up.to(tl.float32)
    out = tl.dot(q, up, input_precision="ieee")
    tl.store(target + d[None, :], out.to(OUT.dtype.element_ty), mask=there[:, None])
    if part == 0:
        r = tl.arange(0, ROPE)
        turn = TABLE + tl.load(POSITIONS + m, mask=there, other=0).to(tl.int64)[:, None] * 2 * ROPE + r[None, :]
        x = tl.load(source + N + r[None, :], mask=there[:, None], other=0.0).to(tl.float32)
        partner = tl.load(source + N + (r ^ 1)[None, :], mask=there[:, None], other=0.0).to(tl.float32)
        turned = x * tl.load(turn) + partner * tl.load(turn + ROPE)
        tl.store(target + D + r[None, :], turned.to(OUT.dtype.element_ty), mask=there[:, None])


def launch(q: Tensor, key_up: Tensor, table: Tensor, positions: Tensor) -> Tensor:
    heads, nope, rank = key_up.shape
    rope, rows = table.shape[2], len(q)
    out = q.new_empty(rows, heads, rank + rope)
    if rows:
        each = min(rank, 128)
        _queries[heads, rank // each, ceil_div(rows, ROWS)](
            q, key_up, table, positions, out, rows, H=heads, N=nope, ROPE=rope, D=rank, BD=each, ROWS=ROWS,
            INTERPRETED=INTERPRETED,
        )  # fmt: skip
    return out


queries = define(
    "queries(Tensor q, Tensor key_up, Tensor table, Tensor positions) -> Tensor", launch, reference.queries
)
