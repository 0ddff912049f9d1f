"""The chosen experts of every row: down(silu(gate x) * up x), in two launches, before the weighted sum.

ids [R, places] are the experts of each row in the stack, each at most once; an id outside 0..E-1 is skipped. gate_up
[E, 2 w, K] (gate rows, then up rows) and down [E, H, w], each with block scales per expert. Pair p = row * places +
place. The first launch gives [P, w], the second [P, H].

A program computes BO outputs for one expert's rows, so that it reads the expert's weights once for any number of rows.
Up to 64 rows, a program finds its rows by comparing all ids; above, pairs are sorted first (sort.py), and a program
takes BR of them at a time. Sums have the order of linear.py, so a row has the same bits either way.
"""

from __future__ import annotations

from torch import Tensor

from outrider.kernels import reference
from outrider.kernels.gpu.language import INTERPRETED, ceil_div, jit, power_of_two, tl
from outrider.kernels.gpu.linear import FEW_ROWS, product
from outrider.kernels.gpu.ops import define
from outrider.kernels.gpu.sort import launch as sort_pairs

_INNER_EACH, _OUTER_EACH = 64, 64  # outputs per program
SORTED_ROWS = 32  # rows per step: with 64 the accumulators of gate and up spill


@jit
def _range(STARTS, expert, SORTED: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """The expert's range of the sorted pairs. Without sorting: a range of one step, over all rows."""
    first, end = 0, 1
    if SORTED:
        first, end = tl.load(STARTS + expert), tl.load(STARTS + expert + 1)
    return first, end


@jit
def _own_pairs(IDS, ORDER, expert, first, end, R, SORTED: tl.constexpr, PLACES: tl.constexpr, WIDTH: tl.constexpr,
               BR: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """The expert's next BR pairs, and a mask of the valid ones. Without sorting, pair j belongs to row j."""
    j = tl.arange(0, BR)
    if SORTED:
        valid = first + j < end
        pair = tl.load(ORDER + first + j, mask=valid, other=0)
    else:
        place = tl.arange(0, WIDTH)
        inside = (j < R)[:, None] & (place < PLACES)[None, :]
        ids = tl.load(IDS + j[:, None] * PLACES + place[None, :], mask=inside, other=-1)
        hit = ids == expert
        valid = tl.max(hit.to(tl.int32), 1) > 0
        pair = j * PLACES + tl.sum(tl.where(hit, place[None, :], 0), 1)
    return pair, valid


@jit
def _store(OUT, out, pair, valid, n, N) -> None:
    """Stores the tile `out` [BO, BR] as outputs `n` of the valid pairs; OUT [pairs, N]."""
    inside = (n < N)[:, None] & valid[None, :]
    tl.store(OUT + pair.to(tl.int64)[None, :] * N + n[:, None], out.to(OUT.dtype.element_ty), mask=inside)


@jit
def _gate_up(X, W, WS, IDS, ORDER, STARTS, OUT, R, w, K, FP8: tl.constexpr, SORTED: tl.constexpr,
             INTERPRETED: tl.constexpr, PLACES: tl.constexpr, WIDTH: tl.constexpr, BR: tl.constexpr,
             BO: tl.constexpr) -> None:  # fmt: skip
    expert = tl.program_id(0)
    n = tl.program_id(1) * BO + tl.arange(0, BO)
    first, end = _range(STARTS, expert, SORTED)
    blocks, groups = tl.cdiv(w, 128), tl.cdiv(K, 128)
    W += expert.to(tl.int64) * 2 * w * K
    if FP8:
        WS += expert * 2 * blocks * groups
    UP, UPS = W + tl.cast(w, tl.int64) * K, WS
    if FP8:
        UPS = WS + blocks * groups
    for at in range(first, end, BR):
        pair, valid = _own_pairs(IDS, ORDER, expert, at, end, R, SORTED, PLACES, WIDTH, BR)
        if tl.max(valid.to(tl.int32), 0) > 0:
            row = pair // PLACES
            gate = product(X, X, W, WS, row, valid, n, w, K, FP8, False, INTERPRETED, BR, BO)
            up = product(X, X, UP, UPS, row, valid, n, w, K, FP8, False, INTERPRETED, BR, BO)
            out = gate / (1.0 + tl.exp(-gate)) * up
            _store(OUT, out, pair, valid, n, w)


@jit
def _down(X, W, WS, IDS, ORDER, STARTS, OUT, R, H, w, FP8: tl.constexpr, SORTED: tl.constexpr,
          INTERPRETED: tl.constexpr, PLACES: tl.constexpr, WIDTH: tl.constexpr, BR: tl.constexpr,
          BO: tl.constexpr) -> None:  # fmt: skip
    expert = tl.program_id(0)
    n = tl.program_id(1) * BO + tl.arange(0, BO)
    first, end = _range(STARTS, expert, SORTED)
    W += expert.to(tl.int64) * H * w
    if FP8:
        WS += expert * tl.cdiv(H, 128) * tl.cdiv(w, 128)
    for at in range(first, end, BR):
        pair, valid = _own_pairs(IDS, ORDER, expert, at, end, R, SORTED, PLACES, WIDTH, BR)
        if tl.max(valid.to(tl.int32), 0) > 0:
            out = product(X, X, W, WS, pair, valid, n, H, w, FP8, False, INTERPRETED, BR, BO)
            _store(OUT, out, pair, valid, n, H)


def launch(x: Tensor, ids: Tensor, gate_up: Tensor, gate_up_scale: Tensor | None, down: Tensor,
           down_scale: Tensor | None, whole: bool) -> Tensor:  # fmt: skip
    rows, places = ids.shape
    experts, hidden, width = down.shape
    inside = x.new_empty(rows * places, width)
    out = (x.new_empty if whole else x.new_zeros)(rows * places, hidden)
    if not rows:
        return out
    ordered = rows > FEW_ROWS
    order, starts = sort_pairs(ids, experts) if ordered else (ids, ids)
    options = {
        "FP8": gate_up_scale is not None, "SORTED": ordered, "INTERPRETED": INTERPRETED, "PLACES": places,
        "WIDTH": power_of_two(places), "BR": SORTED_ROWS if ordered else max(16, power_of_two(rows)), "num_warps": 4,
    }  # fmt: skip
    _gate_up[experts, ceil_div(width, _INNER_EACH)](
        x, gate_up, gate_up_scale, ids, order, starts, inside, rows, width, x.shape[1], BO=_INNER_EACH, **options
    )
    _down[experts, ceil_div(hidden, _OUTER_EACH)](
        inside, down, down_scale, ids, order, starts, out, rows, hidden, width, BO=_OUTER_EACH, **options
    )
    return out


experts = define(
    "experts(Tensor x, Tensor ids, Tensor gate_up, Tensor? gate_up_scale, Tensor down, Tensor? down_scale, bool whole)"
    " -> Tensor",
    launch,
    reference.experts,
    launches=2,
)  # `whole`: outputs of ids outside the stack, if any, are not read, so none needs to be zeroed first
