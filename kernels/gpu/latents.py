"""What a row leaves in the cache, and its low-rank query (DeepSeek-V2, arXiv 2405.04434, section 2.1), in one launch.

low [R, Q + D + r] is [query's latent or queries, latent, rotary key], as one product made it. The query part is
normed, where it is a latent, into q [R, Q]; the latent is normed and the rotary key turned into
cache[slot] = [latent, key] [D + r]; a row whose slot is -1 leaves nothing. table [positions, 2, r] float32 has
cosines and signed sines of interleaved pairs: turned = x cos + partner sin. One program a row; norms as norms.py.
"""

from __future__ import annotations

from torch import Tensor

from outrider.kernels import reference
from outrider.kernels.gpu.language import jit, power_of_two, tl
from outrider.kernels.gpu.norms import normed
from outrider.kernels.gpu.ops import define


@jit
def _latents(LOW, QNORM, KNORM, TABLE, POSITIONS, SLOTS, CACHE, QUERY, Q, eps, NORMED: tl.constexpr,
             QSIZE: tl.constexpr, D: tl.constexpr, ROPE: tl.constexpr):  # fmt: skip
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
        tl.store(CACHE + slot * (D + ROPE) + d, own.to(CACHE.dtype.element_ty))
        r = tl.arange(0, ROPE)
        turn = TABLE + tl.load(POSITIONS + row).to(tl.int64) * 2 * ROPE + r
        key = tl.load(LOW + Q + D + r).to(tl.float32)
        partner = tl.load(LOW + Q + D + (r ^ 1)).to(tl.float32)
        turned = key * tl.load(turn) + partner * tl.load(turn + ROPE)
        tl.store(CACHE + slot * (D + ROPE) + D + r, turned.to(CACHE.dtype.element_ty))


def launch(low: Tensor, query_norm: Tensor | None, latent_norm: Tensor, table: Tensor, positions: Tensor,
           slots: Tensor, cache: Tensor, eps: float) -> Tensor:  # fmt: skip
    rope, rank = table.shape[2], latent_norm.shape[0]
    width = low.shape[1] - rank - rope
    query = low.new_empty(len(low), width)
    if len(low):
        _latents[(len(low),)](
            low, query_norm, latent_norm, table, positions, slots, cache, query, width, eps,
            NORMED=query_norm is not None, QSIZE=power_of_two(width), D=rank, ROPE=rope,
        )  # fmt: skip
    return query


latents = define(
    "latents(Tensor low, Tensor? query_norm, Tensor latent_norm, Tensor table, Tensor positions, Tensor slots,"
    " Tensor(a!) cache, float eps) -> Tensor",
    launch,
    reference.latents,
)
