"""Paged attention over MLA latents (DeepSeek-V2, arXiv 2405.04434), in the absorbed form, with split KV.

q [R, H, D + r] over cache [slots, D + r], or in FP8 (slots.py). tiles [T, 3] int32: sequence, first row, number of
rows (at most QUERIES). A tile multiplies heads x rows as one product, so that a sequence's cache is read once for up
to QUERIES rows of BH heads. pages [S, P] int32 is the block table. seen [R, 2] int32: the first slot that a row
attends to, and one past the last. Output: parts [splits, R, H, D] float32, each split's softmax-weighted mean, and
logs [splits, R, H], its log-sum-exp. values.py merges them.

Order of sums, fixed by the model: a split is SPLIT slots at fixed positions of the sequence, processed in blocks of
BLOCK from the first; splits are merged in order. A fully masked block changes no bits: its weights are zero and the
rescaling factor is one. So the result does not depend on the batch, on chunking, or on where pages are.

Registers: the accumulator takes 128 of a thread's 255, so that little else may live across the loop. Addresses are a
base of the program plus offsets that are constants, and the loop's invariants are computed in it (disable_licm).
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
WARPS, STAGES, FP8_STAGES = 8, 2, 1  # an FP8 cache is converted in registers: 2 stages leave none free
_HEADS = 16


@jit
def _rows_and_heads(TILES, SEEN, tile, H: tl.constexpr, BH: tl.constexpr,
                    QUERIES: tl.constexpr) -> tuple[tl.tensor, ...]:  # fmt: skip
    """The tile's sequence and its first place in [R, H], flattened. For heads x rows, flattened to [BH * QUERIES]: the
    place from there on, whether there is one, and the first slot that the row attends to and one past the last."""
    first, count = tl.load(TILES + tile * 3 + 1), tl.load(TILES + tile * 3 + 2)
    m = tl.arange(0, BH * QUERIES)
    j, h = m // BH, m % BH
    valid = (j < count) & (tl.program_id(1) * BH + h < H)
    low = tl.load(SEEN + (first + j) * 2, mask=valid, other=0)
    high = tl.load(SEEN + (first + j) * 2 + 1, mask=valid, other=0)
    origin = first.to(tl.int64) * H + tl.program_id(1) * BH
    return tl.load(TILES + tile * 3).to(tl.int64), origin, j * H + h, valid, low, high


@jit
def _places(TABLE, start, slot, end, PAGE: tl.constexpr, BLOCK: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """Where the cache has the sequence's slots `slot`, from `start` on: at base + offset [BLOCK]."""
    if PAGE % BLOCK == 0:  # the block lies in one page: one base address
        base = tl.load(TABLE + start // PAGE).to(tl.int64) * PAGE + start % PAGE
        offset = slot - start
    else:
        pages = tl.load(TABLE + slot // PAGE, mask=slot < end, other=0).to(tl.int64)
        base = tl.cast(0, tl.int64)
        offset = pages * PAGE + slot % PAGE
    return base, offset


@jit
def _read(CACHE, base, offset, column, inside, STRIDE: tl.constexpr) -> tl.tensor:
    """Columns `column` of those places, [BLOCK, columns]; 0 where not `inside`."""
    at = (CACHE + base * STRIDE) + (offset * STRIDE)[:, None]
    return tl.load(at + column[None, :], mask=inside[:, None], other=0.0)


@jit
def _scores(latent, rotated, keys, rope, scale) -> tl.tensor:
    """(q_C^T W_UK) c_t + q_R^T k_R,t, scaled: [BH * QUERIES, BLOCK] (equation 46; W_UK is absorbed into the query)."""
    scores = tl.dot(latent, tl.trans(keys), input_precision="ieee")
    return tl.dot(rotated, tl.trans(rope), scores, input_precision="ieee") * scale


@jit
def _add_block(scores, sees, keys, peak, total, mean) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """One step of the online softmax (arXiv 2205.14135): the highest score so far, and by it sums of weights and of
    weighted latents. Scores that are not seen have no weight."""
    scores = tl.where(sees, scores, -1e30)
    higher = tl.maximum(peak, tl.max(scores, 1))
    weights = tl.where(sees, tl.exp(scores - higher[:, None]), 0.0)
    factor = tl.exp(peak - higher)
    total = total * factor + tl.sum(weights, 1)
    mean = tl.dot(weights.to(keys.dtype), keys, mean * factor[:, None], input_precision="ieee")
    return higher, total, mean


@jit
def _mla(Q, LATENTS, SCALES, ROTARY, TILES, PAGES, SEEN, PARTS, LOGS, scale, pages, R, H: tl.constexpr,
         D: tl.constexpr, ROPE: tl.constexpr, GROUP: tl.constexpr, LATENT_STRIDE: tl.constexpr,
         SCALE_STRIDE: tl.constexpr, ROTARY_STRIDE: tl.constexpr, FP8: tl.constexpr, PAGE: tl.constexpr,
         SPLIT: tl.constexpr, BLOCK: tl.constexpr, QUERIES: tl.constexpr, BH: tl.constexpr,
         INTERPRETED: tl.constexpr) -> None:  # fmt: skip
    tile, begin = tl.program_id(0), tl.program_id(2) * SPLIT
    sequence, origin, place, valid, low, high = _rows_and_heads(TILES, SEEN, tile, H, BH, QUERIES)
    end = tl.minimum(tl.max(high, 0), begin + SPLIT)
    if begin < end:
        d, r = tl.arange(0, D), tl.arange(0, ROPE)
        query = Q + origin * (D + ROPE)
        latent = tl.load(query + (place[:, None] * (D + ROPE) + d[None, :]), mask=valid[:, None], other=0.0)
        rotated = tl.load(query + (place[:, None] * (D + ROPE) + D + r[None, :]), mask=valid[:, None], other=0.0)
        if INTERPRETED:
            latent, rotated = latent.to(tl.float32), rotated.to(tl.float32)
        peak = tl.full((BH * QUERIES,), -1e30, tl.float32)
        total = tl.zeros((BH * QUERIES,), tl.float32)
        mean = tl.zeros((BH * QUERIES, D), tl.float32)
        for start in tl.range(begin, end, BLOCK, disable_licm=True):
            slot = start + tl.arange(0, BLOCK)
            base, offset = _places(PAGES + sequence * pages, start, slot, end, PAGE, BLOCK)
            keys = _read(LATENTS, base, offset, d, slot < end, LATENT_STRIDE)
            if FP8:
                scales = _read(SCALES, base, offset, d // GROUP, slot < end, SCALE_STRIDE)
                keys = (keys.to(tl.float32) * scales).to(Q.dtype.element_ty)
            rope = _read(ROTARY, base, offset, r, slot < end, ROTARY_STRIDE)
            if INTERPRETED:
                keys, rope = keys.to(tl.float32), rope.to(tl.float32)
            sees = (slot[None, :] >= low[:, None]) & (slot[None, :] < high[:, None])
            scores = _scores(latent, rotated, keys, rope, scale)
            peak, total, mean = _add_block(scores, sees, keys, peak, total, mean)
        origin += tl.program_id(2).to(tl.int64) * R * H
        safe = tl.maximum(total, 1e-30)
        tl.store(PARTS + origin * D + (place[:, None] * D + d[None, :]), mean / safe[:, None], mask=valid[:, None])
        tl.store(LOGS + origin + place, tl.where(total > 0, peak + tl.log(safe), -1e30), mask=valid)


def launch(q: Tensor, cache: Tensor, tiles: Tensor, pages: Tensor, seen: Tensor, page_size: int, rank: int,
           scale: float, splits: int) -> tuple[Tensor, Tensor]:  # fmt: skip
    rows, heads, width = q.shape
    latents, scales, rotary = slots_of(cache, rank, q.dtype)
    parts = q.new_empty(splits, rows, heads, rank, dtype=torch.float32)
    logs = q.new_empty(splits, rows, heads, dtype=parts.dtype)
    if rows:
        _mla[len(tiles), ceil_div(heads, _HEADS), splits](
            q, latents, scales, rotary, tiles, pages, seen, parts, logs, scale, pages.shape[1], rows, H=heads, D=rank,
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
