"""Sorts pairs (row, place) by expert: order [P], and where each expert's pairs begin, starts [E + 1].

One program per expert counts the pairs of lower experts and writes its own in row order. Integers only and no atomics,
so the result is deterministic. Pairs with an id outside 0..E-1 are in no expert's range.
"""

from __future__ import annotations

from torch import Tensor

from outrider.kernels import reference
from outrider.kernels.gpu.language import jit, tl
from outrider.kernels.gpu.ops import define

_BLOCK = 1024


@jit
def _sort(IDS, ORDER, STARTS, P, BLOCK: tl.constexpr) -> None:
    expert = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    start = 0
    for first in range(0, P, BLOCK):
        ids = tl.load(IDS + first + at, mask=first + at < P, other=-1)
        start += tl.sum(((ids >= 0) & (ids < expert)).to(tl.int32), 0)
    tl.store(STARTS + expert, start)
    for first in range(0, P, BLOCK):
        ids = tl.load(IDS + first + at, mask=first + at < P, other=-1)
        own = (ids == expert).to(tl.int32)
        place = start + tl.cumsum(own, 0) - 1
        tl.store(ORDER + place, first + at, mask=own > 0)
        start += tl.sum(own, 0)
    if expert == tl.num_programs(0) - 1:
        tl.store(STARTS + expert + 1, start)


def launch(ids: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    order, starts = ids.new_empty(ids.numel()), ids.new_empty(experts + 1)
    _sort[(experts,)](ids, order, starts, ids.numel(), BLOCK=_BLOCK)
    return order, starts


sort_pairs = define("sort_pairs(Tensor ids, int experts) -> (Tensor, Tensor)", launch, reference.sort_pairs)
