"""Queries over the paged latents: multi-head latent attention (DeepSeek-V2, arXiv 2405.04434), absorbed, split-KV.

q [R, H, D + r] over cache [slots, D + r]. tiles [T, 3] int32: which sequence, its first row, how many of its rows (at
most QUERIES): heads x rows are the M of one product, so what a sequence has cached is read once for up to QUERIES rows
of BH heads. pages [S, P] int32: each sequence's blocks. seen [R, 2] int32: the first slot that a row sees and one past
the last. Result: parts [R, H, splits, D] float32, each split's weighted mean, and logs [R, H, splits], its log of the
sum of exponents; `values` (values.py) joins them.

Order of sums, fixed by the model: a split is SPLIT slots at fixed positions of the sequence, walked in blocks of BLOCK
from its first; splits are joined in order. A block that a row sees nothing of changes none of its bits: weights are
zero, and the factor of what is there is one. So neither company, nor chunking, nor where pages lie shows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from outrider.kernels import reference
from outrider.kernels.gpu.language import INTERPRETED, ceil_div, jit, tl
from outrider.kernels.gpu.ops import define

SPLIT = 512  # slots of a program
BLOCK = 32
QUERIES = 4  # rows of a tile; 16 heads of each fill a tensor core's 64
WARPS, STAGES = 8, 2  # of those tried that which spills least
_HEADS = 16


@jit
def _mla(Q, CACHE, TILES, PAGES, SEEN, PARTS, LOGS, scale, pages, splits, H: tl.constexpr, D: tl.constexpr,
         ROPE: tl.constexpr, PAGE: tl.constexpr, SPLIT: tl.constexpr, BLOCK: tl.constexpr, QUERIES: tl.constexpr,
         BH: tl.constexpr, INTERPRETED: tl.constexpr):  # fmt: skip
    tile, split = tl.program_id(0), tl.program_id(2)
    sequence = tl.load(TILES + tile * 3).to(tl.int64)
    first, count = tl.load(TILES + tile * 3 + 1), tl.load(TILES + tile * 3 + 2)
    m = tl.arange(0, BH * QUERIES)
    head = tl.program_id(1) * BH + m % BH
    j = m // BH
    there = (j < count) & (head < H)
    row = first + tl.minimum(j, tl.maximum(count - 1, 0))
    low = tl.load(SEEN + row * 2, mask=there, other=0)
    high = tl.load(SEEN + row * 2 + 1, mask=there, other=0)
    end = tl.minimum(tl.max(high, 0), (split + 1) * SPLIT)
    begin = split * SPLIT
    if begin < end:
        query = Q + (row.to(tl.int64) * H + head) * (D + ROPE)
        d, r, k = tl.arange(0, D), tl.arange(0, ROPE), tl.arange(0, BLOCK)
        latent = tl.load(query[:, None] + d[None, :], mask=there[:, None], other=0.0)
        turned = tl.load(query[:, None] + D + r[None, :], mask=there[:, None], other=0.0)
        if INTERPRETED:
            latent, turned = latent.to(tl.float32), turned.to(tl.float32)
        peak = tl.full((BH * QUERIES,), -1e30, tl.float32)
        total = tl.zeros((BH * QUERIES,), tl.float32)
        mean = tl.zeros((BH * QUERIES, D), tl.float32)
        for start in range(begin, end, BLOCK):
            slot = start + k
            if PAGE % BLOCK == 0:  # one page has all of the block: one address, and small offsets from it
                page = tl.load(PAGES + sequence * pages + start // PAGE).to(tl.int64)
                at = (CACHE + (page * PAGE + start % PAGE) * (D + ROPE)) + k * (D + ROPE)
            else:
                of_each = tl.load(PAGES + sequence * pages + slot // PAGE, mask=slot < end, other=0).to(tl.int64)
                at = CACHE + (of_each * PAGE + slot % PAGE) * (D + ROPE)
            keys = tl.load(at[:, None] + d[None, :], mask=(slot < end)[:, None], other=0.0)
            rope = tl.load(at[:, None] + D + r[None, :], mask=(slot < end)[:, None], other=0.0)
            if INTERPRETED:
                keys, rope = keys.to(tl.float32), rope.to(tl.float32)
            scores = tl.dot(latent, tl.trans(keys), input_precision="ieee")
            scores = tl.dot(turned, tl.trans(rope), scores, input_precision="ieee") * scale
            sees = (slot[None, :] >= low[:, None]) & (slot[None, :] < high[:, None])
            scores = tl.where(sees, scores, -1e30)
            higher = tl.maximum(peak, tl.max(scores, 1))
            weights = tl.where(sees, tl.exp(scores - higher[:, None]), 0.0)
            factor = tl.exp(peak - higher)
            total = total * factor + tl.sum(weights, 1)
            mean = mean * factor[:, None]
            mean = tl.dot(weights.to(keys.dtype), keys, mean, input_precision="ieee")
            peak = higher
        place = (row.to(tl.int64) * H + head) * splits + split
        safe = tl.maximum(total, 1e-30)
        tl.store(PARTS + place[:, None] * D + d[None, :], mean / safe[:, None], mask=there[:, None])
        tl.store(LOGS + place, tl.where(total > 0, peak + tl.log(safe), -1e30), mask=there)


def launch(q: Tensor, cache: Tensor, tiles: Tensor, pages: Tensor, seen: Tensor, page_size: int, rank: int,
           scale: float, splits: int) -> tuple[Tensor, Tensor]:  # fmt: skip
    rows, heads, width = q.shape
    parts = q.new_empty(rows, heads, splits, rank, dtype=torch.float32)
    logs = q.new_empty(rows, heads, splits, dtype=parts.dtype)
    if rows:
        _mla[len(tiles), ceil_div(heads, _HEADS), splits](
            q, cache, tiles, pages, seen, parts, logs, scale, pages.shape[1], splits, H=heads, D=rank,
            ROPE=width - rank, PAGE=page_size, SPLIT=SPLIT, BLOCK=BLOCK, QUERIES=QUERIES, BH=_HEADS,
            INTERPRETED=INTERPRETED, num_warps=WARPS, num_stages=STAGES,
        )  # fmt: skip
    return parts, logs


mla = define(
    "mla(Tensor q, Tensor cache, Tensor tiles, Tensor pages, Tensor seen, int page_size, int rank, float scale,"
    " int splits) -> (Tensor, Tensor)",
    launch,
    reference.mla,
)
