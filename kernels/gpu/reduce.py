"""Adds up what the ranks of a node made, joins it to the stream and norms it: one launch between two products.

A one-shot all-reduce over memory that every GPU of the group reaches (torch's symmetric memory), with join_norm
(norms.py) around it. One program a row: it writes its own weighted sum where peers can read it, tells them, waits for
theirs, and adds them up rank by rank, so all ranks have the same bits. `addresses` [2, ranks] int64 are every rank's
data [2, most rows, H] and flags [2, most rows, ranks] int32; `epochs` [most rows] int32 counts this rank's calls by
row. Data and flags have two halves that take turns: a rank that writes the third time has heard from all others in
between, and they had read the first by then.

Rows must be as many on all ranks, and few enough that their programs run at once. What only a device can show: that
flags and data are seen in order (release and acquire at system scope).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from outrider.kernels import reference
from outrider.kernels.gpu.language import jit, power_of_two, tl
from outrider.kernels.gpu.norms import normed
from outrider.kernels.gpu.ops import define

MOST_ROWS = 128


@jit
def _sum_join_norm(HIDDEN, OUTPUTS, WEIGHTS, NORM, STREAM, NORMED, ADDRESSES, EPOCHS, size, eps, rank,
                   PLACES: tl.constexpr, WEIGHTED: tl.constexpr, SIZE: tl.constexpr, RANKS: tl.constexpr,
                   MOST: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, SIZE)
    inside = at < size
    own = tl.zeros((SIZE,), dtype=tl.float32)
    for place in range(PLACES):
        out = tl.load(OUTPUTS + (row * PLACES + place) * size + at, mask=inside, other=0.0).to(tl.float32)
        if WEIGHTED:
            out = out * tl.load(WEIGHTS + row * PLACES + place)
        own = own + out
    epoch = tl.load(EPOCHS + row) + 1
    place = (epoch % 2) * MOST + row
    mine = tl.load(ADDRESSES + rank).to(tl.pointer_type(OUTPUTS.dtype.element_ty))
    tl.store(mine + place * size + at, own.to(OUTPUTS.dtype.element_ty), mask=inside)
    tl.debug_barrier()  # all of the row is written before it is told
    for peer in tl.static_range(RANKS):
        flags = tl.load(ADDRESSES + RANKS + peer).to(tl.pointer_type(tl.int32))
        tl.atomic_xchg(flags + place * RANKS + rank, epoch, sem="release", scope="sys")
    heard = tl.load(ADDRESSES + RANKS + rank).to(tl.pointer_type(tl.int32))
    for peer in tl.static_range(RANKS):
        while tl.atomic_add(heard + place * RANKS + peer, 0, sem="acquire", scope="sys") != epoch:
            pass
    tl.debug_barrier()
    total = tl.zeros((SIZE,), dtype=tl.float32)
    for peer in range(RANKS):
        theirs = tl.load(ADDRESSES + peer).to(tl.pointer_type(OUTPUTS.dtype.element_ty))
        total += tl.load(theirs + place * size + at, mask=inside, other=0.0, volatile=True).to(tl.float32)
    tl.store(EPOCHS + row, epoch)
    x = tl.load(HIDDEN + row * size + at, mask=inside, other=0.0).to(tl.float32) + total
    x = x.to(STREAM.dtype.element_ty)
    tl.store(STREAM + row * size + at, x, mask=inside)
    out = normed(x.to(tl.float32), NORM, at, inside, size, eps, STREAM.dtype.element_ty)
    tl.store(NORMED + row * size + at, out.to(NORMED.dtype.element_ty), mask=inside)


def launch(hidden: Tensor, outputs: Tensor, weights: Tensor | None, norm: Tensor, eps: float, addresses: Tensor,
           epochs: Tensor, rank: int, group: str) -> tuple[Tensor, Tensor]:  # fmt: skip
    rows, size = hidden.shape
    stream, out = torch.empty_like(hidden), torch.empty_like(hidden)
    _sum_join_norm[(rows,)](
        hidden, outputs, weights, norm, stream, out, addresses, epochs, size, eps, rank, PLACES=len(outputs) // rows,
        WEIGHTED=weights is not None, SIZE=power_of_two(size), RANKS=addresses.shape[1], MOST=len(epochs), num_warps=16,
    )  # fmt: skip
    return stream, out


def _twin(hidden: Tensor, outputs: Tensor, weights: Tensor | None, norm: Tensor, eps: float, addresses: Tensor,
          epochs: Tensor, rank: int, group: str) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Over the process group of that name; "" has this rank alone."""
    part = outputs.clone() if weights is None else reference.weigh(outputs, weights)
    if group:
        names: Any = dist.distributed_c10d
        dist.all_reduce(part, group=names._resolve_process_group(group))
    return reference.join_norm(hidden, part, None, norm, eps)


sum_join_norm = define(
    "sum_join_norm(Tensor hidden, Tensor outputs, Tensor? weights, Tensor norm, float eps, Tensor addresses,"
    " Tensor(a!) epochs, int rank, str group) -> (Tensor, Tensor)",
    launch,
    _twin,
)
