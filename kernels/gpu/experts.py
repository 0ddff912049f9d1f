"""The chosen experts of every row: down(silu(gate x) * up x), two launches, whole and not yet weighted.

ids [R, places]: which of the stacked experts have the row, each at most once; one that is not here (-1, or beyond) is
skipped.
gate_up [E, 2 w, K] (gate rows, then up), down [E, H, w], with scales by block of each expert. Pair p = row * places +
place: inside [P, w], then out [P, H].

A program makes BO outputs of one expert's rows, so its weights are read once however many rows chose it. With few
rows (at most 64) a program finds its rows by looking at all ids; with many they are sorted first (sort.py), and it
takes BR of them at a time. Sums are those of linear.py: one row's order is the same in both forms.
"""

from __future__ import annotations

from torch import Tensor

from outrider.kernels import reference
from outrider.kernels.gpu.language import INTERPRETED, ceil_div, jit, power_of_two, tl
from outrider.kernels.gpu.linear import FEW_ROWS, product
from outrider.kernels.gpu.ops import define
from outrider.kernels.gpu.sort import launch as sort_pairs

_INNER_EACH, _OUTER_EACH = 64, 64  # outputs of a program
SORTED_ROWS = 32  # of an expert at a time: with 64 the two sums of gate and up spill


@jit
def _own_pairs(IDS, ORDER, expert, first, end, R, SORTED: tl.constexpr, PLACES: tl.constexpr, WIDTH: tl.constexpr,
               BR: tl.constexpr):  # fmt: skip
    """Pairs [BR] of the expert, and which of them are there: BR of its sorted ones, or of each row its own."""
    j = tl.arange(0, BR)
    if SORTED:
        valid = first + j < end
        pair = tl.load(ORDER + first + j, mask=valid, other=0)
    else:
        place = tl.arange(0, WIDTH)
        there = (j < R)[:, None] & (place < PLACES)[None, :]
        ids = tl.load(IDS + j[:, None] * PLACES + place[None, :], mask=there, other=-1)
        hit = ids == expert
        valid = tl.max(hit.to(tl.int32), 1) > 0
        pair = j * PLACES + tl.sum(tl.where(hit, place[None, :], 0), 1)
    return pair, valid


@jit
def _gate_up(X, W, WS, IDS, ORDER, STARTS, OUT, R, w, K, FP8: tl.constexpr, SORTED: tl.constexpr,
             INTERPRETED: tl.constexpr, PLACES: tl.constexpr, WIDTH: tl.constexpr, BR: tl.constexpr,
             BO: tl.constexpr):  # fmt: skip
    expert = tl.program_id(0)
    n = tl.program_id(1) * BO + tl.arange(0, BO)
    first, end = 0, 1
    if SORTED:
        first, end = tl.load(STARTS + expert), tl.load(STARTS + expert + 1)
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
            inside = (n < w)[:, None] & valid[None, :]
            tl.store(OUT + pair.to(tl.int64)[None, :] * w + n[:, None], out.to(OUT.dtype.element_ty), mask=inside)


@jit
def _down(X, W, WS, IDS, ORDER, STARTS, OUT, R, H, w, FP8: tl.constexpr, SORTED: tl.constexpr,
          INTERPRETED: tl.constexpr, PLACES: tl.constexpr, WIDTH: tl.constexpr, BR: tl.constexpr,
          BO: tl.constexpr):  # fmt: skip
    expert = tl.program_id(0)
    n = tl.program_id(1) * BO + tl.arange(0, BO)
    first, end = 0, 1
    if SORTED:
        first, end = tl.load(STARTS + expert), tl.load(STARTS + expert + 1)
    W += expert.to(tl.int64) * H * w
    if FP8:
        WS += expert * tl.cdiv(H, 128) * tl.cdiv(w, 128)
    for at in range(first, end, BR):
        pair, valid = _own_pairs(IDS, ORDER, expert, at, end, R, SORTED, PLACES, WIDTH, BR)
        if tl.max(valid.to(tl.int32), 0) > 0:
            out = product(X, X, W, WS, pair, valid, n, H, w, FP8, False, INTERPRETED, BR, BO)
            inside = (n < H)[:, None] & valid[None, :]
            tl.store(OUT + pair.to(tl.int64)[None, :] * H + n[:, None], out.to(OUT.dtype.element_ty), mask=inside)


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
)  # `whole`: all that ids name are here; else what others make is zeros
