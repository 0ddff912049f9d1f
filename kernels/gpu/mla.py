"""Paged attention over MLA latents (DeepSeek-V2, arXiv 2405.04434), in the absorbed form, with split KV.

q [R, H, D + r] over cache [slots, D + r], or in FP8 (slots.py). tiles [T, 3] int32: sequence, first row, number of
rows (at most QUERIES). A tile multiplies heads x rows as one product, so that a sequence's cache is read once for up
to QUERIES rows of BH heads. pages [S, P] int32 is the block table. seen [R, 2] int32: the first slot that a row
attends to, and one past the last. Output: parts [R, H, splits, D] float32, each split's softmax-weighted mean, and
logs [R, H, splits], its log-sum-exp. values.py merges them.

Order of sums, fixed by the model: a split is SPLIT slots at fixed positions of the sequence, processed in blocks of
BLOCK from the first; splits are merged in order. A fully masked block changes no bits: its weights are zero and the
rescaling factor is one. So the result does not depend on the batch, on chunking, or on where pages are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from outrider.kernels import reference
from outrider.kernels.gpu.language import INTERPRETED, ceil_div, jit, tl
from outrider.kernels.gpu.ops import define
from outrider.kernels.gpu.slots import slots_of, strides

SPLIT = 512  # slots per program
BLOCK = 32
QUERIES = 4  # rows per tile: with 16 heads they fill the 64 rows of a tensor core product
WARPS, STAGES, FP8_STAGES = 8, 2, 1  # spill least among those compiled
_HEADS = 16


@jit
def _mla(Q, LATENTS, SCALES, ROTARY, TILES, PAGES, SEEN, PARTS, LOGS, scale, pages, splits, H: tl.constexpr,
         D: tl.constexpr, ROPE: tl.constexpr, GROUP: tl.constexpr, LATENT_STRIDE: tl.constexpr,
         SCALE_STRIDE: tl.constexpr, ROTARY_STRIDE: tl.constexpr, FP8: tl.constexpr, PAGE: tl.constexpr,
         SPLIT: tl.constexpr, BLOCK: tl.constexpr, QUERIES: tl.constexpr, BH: tl.constexpr,
         INTERPRETED: tl.constexpr) -> None:  # fmt: skip
    tile, split = tl.program_id(0), tl.program_id(2)
    sequence = tl.load(TILES + tile * 3).to(tl.int64)
    first, count = tl.load(TILES + tile * 3 + 1), tl.load(TILES + tile * 3 + 2)
    m = tl.arange(0, BH * QUERIES)
    head = tl.program_id(1) * BH + m % BH
    j = m // BH
    valid = (j < count) & (head < H)
    row = first + tl.minimum(j, tl.maximum(count - 1, 0))
    low = tl.load(SEEN + row * 2, mask=valid, other=0)
    high = tl.load(SEEN + row * 2 + 1, mask=valid, other=0)
    end = tl.minimum(tl.max(high, 0), (split + 1) * SPLIT)
    begin = split * SPLIT
    if begin < end:
        query = Q + (row.to(tl.int64) * H + head) * (D + ROPE)
        d, r, k = tl.arange(0, D), tl.arange(0, ROPE), tl.arange(0, BLOCK)
        latent = tl.load(query[:, None] + d[None, :], mask=valid[:, None], other=0.0)
        rotated = tl.load(query[:, None] + D + r[None, :], mask=valid[:, None], other=0.0)
        if INTERPRETED:
            latent, rotated = latent.to(tl.float32), rotated.to(tl.float32)
        peak = tl.full((BH * QUERIES,), -1e30, tl.float32)
        total = tl.zeros((BH * QUERIES,), tl.float32)
        mean = tl.zeros((BH * QUERIES, D), tl.float32)
        for start in range(begin, end, BLOCK):
            slot = start + k
            if PAGE % BLOCK == 0:  # the block lies in one page: one base address
                page = tl.load(PAGES + sequence * pages + start // PAGE).to(tl.int64)
                base = page * PAGE + start % PAGE
                offset = k
            else:
                of_each = tl.load(PAGES + sequence * pages + slot // PAGE, mask=slot < end, other=0).to(tl.int64)
                base = tl.cast(0, tl.int64)
                offset = of_each * PAGE + slot % PAGE
            inside = (slot < end)[:, None]
            at = (LATENTS + base * LATENT_STRIDE) + (offset * LATENT_STRIDE)[:, None]
            keys = tl.load(at + d[None, :], mask=inside, other=0.0)
            if FP8:
                at = (SCALES + base * SCALE_STRIDE) + (offset * SCALE_STRIDE)[:, None]
                scales = tl.load(at + (d // GROUP)[None, :], mask=inside, other=0.0)
                keys = (keys.to(tl.float32) * scales).to(Q.dtype.element_ty)
            at = (ROTARY + base * ROTARY_STRIDE) + (offset * ROTARY_STRIDE)[:, None]
            rope = tl.load(at + r[None, :], mask=inside, other=0.0)
            if INTERPRETED:
                keys, rope = keys.to(tl.float32), rope.to(tl.float32)
            scores = tl.dot(latent, tl.trans(keys), input_precision="ieee")
            scores = tl.dot(rotated, tl.trans(rope), scores, input_precision="ieee") * scale
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
        tl.store(PARTS + place[:, None] * D + d[None, :], mean / safe[:, None], mask=valid[:, None])
        tl.store(LOGS + place, tl.where(total > 0, peak + tl.log(safe), -1e30), mask=valid)


def launch(q: Tensor, cache: Tensor, tiles: Tensor, pages: Tensor, seen: Tensor, page_size: int, rank: int,
           scale: float, splits: int) -> tuple[Tensor, Tensor]:  # fmt: skip
    rows, heads, width = q.shape
    latents, scales, rotary = slots_of(cache, rank, q.dtype)
    parts = q.new_empty(rows, heads, splits, rank, dtype=torch.float32)
    logs = q.new_empty(rows, heads, splits, dtype=parts.dtype)
    if rows:
        _mla[len(tiles), ceil_div(heads, _HEADS), splits](
            q, latents, scales, rotary, tiles, pages, seen, parts, logs, scale, pages.shape[1], splits, H=heads, D=rank,
            ROPE=width - rank, **strides(latents, scales, rotary), PAGE=page_size, SPLIT=SPLIT, BLOCK=BLOCK,
            QUERIES=QUERIES, BH=_HEADS, INTERPRETED=INTERPRETED, num_warps=WARPS,
            num_stages=STAGES if scales is None else FP8_STAGES,
        )  # fmt: skip
    return parts, logs


mla = define(
    "mla(Tensor q, Tensor cache, Tensor tiles, Tensor pages, Tensor seen, int page_size, int rank, float scale,"
    " int splits) -> (Tensor, Tensor)",
    launch,
    reference.mla,
)
