"""Writes a row's MLA latent to the KV cache, and norms its low-rank query (DeepSeek-V2, arXiv 2405.04434, section 2.1).

low [R, Q + D + r] is [query latent or queries, KV latent, rotary key], the output of one projection. Output q [R, Q]:
the query part, normed if it is a latent. The KV latent is normed, the rotary key rotated, and both written to
cache[slot] [D + r], or in FP8 (slots.py); a row with slot -1 writes nothing. table [positions, 2, r] float32 has
cosines and signed sines of interleaved pairs: rotated = x cos + partner sin. One program per row; norms as in
norms.py.
"""

from __future__ import annotations

from torch import Tensor

from outrider.kernels import reference
from outrider.kernels.gpu.language import INTERPRETED, jit, power_of_two, tl
from outrider.kernels.gpu.norms import normed
from outrider.kernels.gpu.ops import define
from outrider.kernels.gpu.rounding import quantized
from outrider.kernels.gpu.slots import slots_of, strides


@jit
def _latents(LOW, QNORM, KNORM, TABLE, POSITIONS, SLOTS, LATENTS, SCALES, ROTARY, QUERY, Q, eps, NORMED: tl.constexpr,
             QSIZE: tl.constexpr, D: tl.constexpr, ROPE: tl.constexpr, GROUP: tl.constexpr,
             LATENT_STRIDE: tl.constexpr, SCALE_STRIDE: tl.constexpr, ROTARY_STRIDE: tl.constexpr, FP8: tl.constexpr,
             INTERPRETED: tl.constexpr) -> None:  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    LOW += row * (Q + D + ROPE)
    at = tl.arange(0, QSIZE)
    inside = at < Q
    query = tl.load(LOW + at, mask=inside, other=0.0)
    if NORMED:
        out = normed(query.to(tl.float32), QNORM, at, inside, Q, eps, query.dtype)
        tl.store(QUERY + row * Q + at, out.to(QUERY.dtype.element_ty), mask=inside)
    else:
        tl.store(QUERY + row * Q + at, query, mask=inside)
    slot = tl.load(SLOTS + row).to(tl.int64)
    if slot >= 0:
        d = tl.arange(0, D)
        latent = tl.load(LOW + Q + d)
        own = normed(latent.to(tl.float32), KNORM, d, d < D, D, eps, latent.dtype)
        target = LATENTS + slot * LATENT_STRIDE + d
        if FP8:
            q, scales = quantized(tl.reshape(own, (D // GROUP, GROUP)), 1, INTERPRETED)
            tl.store(SCALES + slot * SCALE_STRIDE + tl.arange(0, D // GROUP), scales)
            tl.store(target, tl.reshape(q, (D,)))
        else:
            tl.store(target, own.to(LATENTS.dtype.element_ty))
        r = tl.arange(0, ROPE)
        angles = TABLE + tl.load(POSITIONS + row).to(tl.int64) * 2 * ROPE + r
        key = tl.load(LOW + Q + D + r).to(tl.float32)
        partner = tl.load(LOW + Q + D + (r ^ 1)).to(tl.float32)
        rotated = key * tl.load(angles) + partner * tl.load(angles + ROPE)
        tl.store(ROTARY + slot * ROTARY_STRIDE + r, rotated.to(ROTARY.dtype.element_ty))


def launch(low: Tensor, query_norm: Tensor | None, latent_norm: Tensor, table: Tensor, positions: Tensor,
           slots: Tensor, cache: Tensor, eps: float) -> Tensor:  # fmt: skip
    rope, rank = table.shape[2], latent_norm.shape[0]
    width = low.shape[1] - rank - rope
    parts = slots_of(cache, rank, low.dtype)
    query = low.new_empty(len(low), width)
    if len(low):
        _latents[(len(low),)](
            low, query_norm, latent_norm, table, positions, slots, *parts, query, width, eps,
            NORMED=query_norm is not None, QSIZE=power_of_two(width), D=rank, ROPE=rope, **strides(*parts),
            INTERPRETED=INTERPRETED,
        )  # fmt: skip
    return query


latents = define(
    "latents(Tensor low, Tensor? query_norm, Tensor latent_norm, Tensor table, Tensor positions, Tensor slots,"
    " Tensor(a!) cache, float eps) -> Tensor",
    launch,
    reference.latents,
)
