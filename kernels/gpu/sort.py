"""Pairs (row, place) by the expert that has them: order [P] and where each expert's begin, starts [E + 1].

One program an expert: it counts the pairs of lower experts and writes its own, in the order of their rows. Integers
only, no atomics: the same every time. Pairs of no expert here (-1, or beyond) are in no one's range.
"""

from __future__ import annotations

from torch import Tensor

from outrider.kernels import reference
from outrider.kernels.gpu.language import jit, tl
from outrider.kernels.gpu.ops import define

_AT_ONCE = 1024


@jit
def _sort(IDS, ORDER, STARTS, P, BLOCK: tl.constexpr):
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
    _sort[(experts,)](ids, order, starts, ids.numel(), BLOCK=_AT_ONCE)
    return order, starts


sort_pairs = define("sort_pairs(Tensor ids, int experts) -> (Tensor, Tensor)", launch, reference.sort_pairs)
