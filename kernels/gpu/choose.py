"""Which experts a row goes to, and with what weight (DeepSeek-V3, arXiv 2412.19437, section 2.1.2).

logits [R, E] float32 -> ids [R, k + shared] int32, ascending, the shared experts E, E + 1, .. last; weights likewise,
float32, 1 for a shared one. A group counts by the sum of its two largest biased scores; the best
groups' best experts are chosen by biased score; equal scores go to the lower id. Weights are the unbiased scores over
their sum (one tree over all E places, the others zero), times the scaling factor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from outrider.kernels import reference
from outrider.kernels.gpu.language import INTERPRETED, ceil_div, jit, power_of_two, tl
from outrider.kernels.gpu.ops import define

_ROWS = 512 if INTERPRETED else 4  # of a program: a constant, so that its trees have one shape


@jit
def _choose(LOGITS, BIAS, IDS, WEIGHTS, scaling, R, E, SIZE: tl.constexpr, GROUPS: tl.constexpr, EACH: tl.constexpr,
            KEPT: tl.constexpr, CHOSEN: tl.constexpr, SHARED: tl.constexpr, NORMED: tl.constexpr,
            GROUPS_SIZE: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = (row < R)[:, None]
    e = tl.arange(0, SIZE)[None, :]
    nothing = float("-inf")
    logits = tl.load(LOGITS + row[:, None] * E + e, mask=there & (e < E), other=0.0)
    scores = 1.0 / (1.0 + tl.exp(-logits))
    biased = tl.where(e < E, scores + tl.load(BIAS + e, mask=e < E, other=0.0), nothing)  # [ROWS, SIZE]
    if KEPT < GROUPS:
        g = tl.arange(0, GROUPS_SIZE)[None, :]
        sums = tl.full((ROWS, GROUPS_SIZE), nothing, tl.float32)
        for group in tl.static_range(GROUPS):
            own = tl.where(e // EACH == group, biased, nothing)
            first = tl.max(own, 1)[:, None]
            place = tl.min(tl.where(own == first, e, SIZE), 1)[:, None]
            second = tl.max(tl.where(e == place, nothing, own), 1)[:, None]
            sums = tl.where(g == group, first + second, sums)
        kept = tl.zeros((ROWS, SIZE), dtype=tl.int32)
        for _ in tl.static_range(KEPT):
            best = tl.min(tl.where(sums == tl.max(sums, 1)[:, None], g, GROUPS_SIZE), 1)[
                :, None
            ]  # the lowest of equals
            kept += (e // EACH == best).to(tl.int32)
            sums = tl.where(g == best, nothing, sums)
        biased = tl.where(kept > 0, biased, nothing)
    taken = tl.zeros((ROWS, SIZE), dtype=tl.int32)
    for _ in tl.static_range(CHOSEN):
        best = tl.min(tl.where(biased == tl.max(biased, 1)[:, None], e, SIZE), 1)[:, None]
        taken += (e == best).to(tl.int32)
        biased = tl.where(e == best, nothing, biased)
    weights = tl.where(taken > 0, scores, 0.0)
    if NORMED:
        weights = weights / (tl.sum(weights, 1) + 1e-20)[:, None]
    place = row[:, None] * (CHOSEN + SHARED) + tl.cumsum(taken, 1) - 1
    tl.store(IDS + place, e + tl.zeros((ROWS, SIZE), dtype=tl.int32), mask=there & (taken > 0))
    tl.store(WEIGHTS + place, weights * scaling, mask=there & (taken > 0))
    for shared in tl.static_range(SHARED):
        at = row * (CHOSEN + SHARED) + CHOSEN + shared
        tl.store(IDS + at, tl.zeros((ROWS,), dtype=tl.int32) + E + shared, mask=row < R)
        tl.store(WEIGHTS + at, tl.full((ROWS,), 1.0, tl.float32), mask=row < R)


def launch(logits: Tensor, bias: Tensor, chosen: int, groups: int, kept: int, normed: bool, scaling: float,
           shared: int) -> tuple[Tensor, Tensor]:  # fmt: skip
    rows, experts = logits.shape
    ids = logits.new_empty(rows, chosen + shared, dtype=torch.int32)
    weights = logits.new_empty(rows, chosen + shared)
    if rows:
        _choose[(ceil_div(rows, _ROWS),)](
            logits, bias, ids, weights, scaling, rows, experts, SIZE=power_of_two(experts), GROUPS=groups,
            EACH=experts // groups, KEPT=kept, CHOSEN=chosen, SHARED=shared, NORMED=normed,
            GROUPS_SIZE=power_of_two(groups), ROWS=_ROWS,
        )  # fmt: skip
    return ids, weights


choose = define(
    "choose(Tensor logits, Tensor bias, int chosen, int groups, int kept, bool normed, float scaling, int shared)"
    " -> (Tensor, Tensor)",
    launch,
    reference.choose,
)
