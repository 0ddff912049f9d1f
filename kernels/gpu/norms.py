"""Norms, and what is joined to the residual stream before them.

`join_norm`: hidden' = hidden + sum over places of weight * output, then its root-mean-square norm. Order of sums: a
row's places in their order (ascending expert id, the shared expert last) in float32, added to the stream and rounded to
its type; the sum of squares as one tree over the row, whose shape the hidden size fixes. One program a row.

`weigh`: the sum over places alone, where other ranks have parts of it. `norm`: the norm alone.

`pair_norms`: what an MTP module joins: [norm of the token's embedding, norm of the state before it].
"""

from __future__ import annotations

import torch
from torch import Tensor

from outrider.kernels import reference
from outrider.kernels.gpu.language import jit, power_of_two, tl
from outrider.kernels.gpu.ops import define


@jit
def normed(x, WEIGHT, at, inside, size, eps, TYPE: tl.constexpr):
    """float32 `x` over its root mean square, rounded to TYPE, times the weight."""
    scale = 1.0 / tl.sqrt(tl.sum(x * x, 0) / size + eps)
    weight = tl.load(WEIGHT + at, mask=inside, other=0.0).to(tl.float32)
    return (x * scale).to(TYPE).to(tl.float32) * weight


@jit
def _join_norm(HIDDEN, OUTPUTS, WEIGHTS, NORM, STREAM, NORMED, size, eps, PLACES: tl.constexpr, WEIGHTED: tl.constexpr,
               SIZE: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, SIZE)
    inside = at < size
    total = tl.zeros((SIZE,), dtype=tl.float32)
    for place in range(PLACES):
        out = tl.load(OUTPUTS + (row * PLACES + place) * size + at, mask=inside, other=0.0).to(tl.float32)
        if WEIGHTED:
            out = out * tl.load(WEIGHTS + row * PLACES + place)
        total = total + out
    x = tl.load(HIDDEN + row * size + at, mask=inside, other=0.0).to(tl.float32) + total
    x = x.to(STREAM.dtype.element_ty)
    tl.store(STREAM + row * size + at, x, mask=inside)
    out = normed(x.to(tl.float32), NORM, at, inside, size, eps, STREAM.dtype.element_ty)
    tl.store(NORMED + row * size + at, out.to(NORMED.dtype.element_ty), mask=inside)


def launch_join_norm(hidden: Tensor, outputs: Tensor, weights: Tensor | None, norm: Tensor,
                     eps: float) -> tuple[Tensor, Tensor]:  # fmt: skip
    stream, out = torch.empty_like(hidden), torch.empty_like(hidden)
    rows, size = hidden.shape
    if rows:
        _join_norm[(rows,)](
            hidden, outputs, weights, norm, stream, out, size, eps, PLACES=len(outputs) // rows,
            WEIGHTED=weights is not None, SIZE=power_of_two(size), num_warps=8,
        )  # fmt: skip
    return stream, out


join_norm = define(
    "join_norm(Tensor hidden, Tensor outputs, Tensor? weights, Tensor norm, float eps) -> (Tensor, Tensor)",
    launch_join_norm,
    reference.join_norm,
)


@jit
def _weigh(OUTPUTS, WEIGHTS, SUM, size, PLACES: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for place in range(PLACES):
        out = tl.load(OUTPUTS + (row * PLACES + place) * size + at, mask=at < size, other=0.0).to(tl.float32)
        total = total + out * tl.load(WEIGHTS + row * PLACES + place)
    tl.store(SUM + row * size + at, total.to(SUM.dtype.element_ty), mask=at < size)


def launch_weigh(outputs: Tensor, weights: Tensor) -> Tensor:
    rows, places = weights.shape
    out = outputs.new_empty(rows, outputs.shape[1])
    if rows:
        _weigh[rows, -(-out.shape[1] // 1024)](outputs, weights, out, out.shape[1], PLACES=places, BLOCK=1024)
    return out


weigh = define("weigh(Tensor outputs, Tensor weights) -> Tensor", launch_weigh, reference.weigh)


@jit
def _norm(X, WEIGHT, OUT, size, eps, SIZE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, SIZE)
    inside = at < size
    x = tl.load(X + row * size + at, mask=inside, other=0.0)
    out = normed(x.to(tl.float32), WEIGHT, at, inside, size, eps, x.dtype)
    tl.store(OUT + row * size + at, out.to(OUT.dtype.element_ty), mask=inside)


def launch_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    out = torch.empty_like(x)
    if len(x):
        _norm[(len(x),)](x, weight, out, x.shape[1], eps, SIZE=power_of_two(x.shape[1]), num_warps=8)
    return out


norm = define("norm(Tensor x, Tensor weight, float eps) -> Tensor", launch_norm, reference.norm)


@jit
def _pair_norms(EMBEDDED, HIDDEN, FIRST, SECOND, OUT, size, eps, SIZE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, SIZE)
    inside = at < size
    embedded = tl.load(EMBEDDED + row * size + at, mask=inside, other=0.0)
    out = normed(embedded.to(tl.float32), FIRST, at, inside, size, eps, embedded.dtype)
    tl.store(OUT + row * 2 * size + at, out.to(OUT.dtype.element_ty), mask=inside)
    hidden = tl.load(HIDDEN + row * size + at, mask=inside, other=0.0)
    out = normed(hidden.to(tl.float32), SECOND, at, inside, size, eps, hidden.dtype)
    tl.store(OUT + row * 2 * size + size + at, out.to(OUT.dtype.element_ty), mask=inside)


def launch_pair_norms(embedded: Tensor, hidden: Tensor, first: Tensor, second: Tensor, eps: float) -> Tensor:
    rows, size = hidden.shape
    out = hidden.new_empty(rows, 2 * size)
    if rows:
        _pair_norms[(rows,)](embedded, hidden, first, second, out, size, eps, SIZE=power_of_two(size), num_warps=8)
    return out


pair_norms = define(
    "pair_norms(Tensor embedded, Tensor hidden, Tensor first, Tensor second, float eps) -> Tensor",
    launch_pair_norms,
    reference.pair_norms,
)
