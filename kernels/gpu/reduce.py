"""A tensor group's all-reduce, fused with the residual add and the norm after it (`join_norm` in norms.py).

A one-shot all-reduce over memory that every GPU of the group can access (torch's symmetric memory). One program per
row: it writes its weighted sum to its rank's buffer, sets a flag on every rank, waits for all ranks' flags, and adds
their buffers in rank order, so that all ranks get the same bits. `addresses` [2, ranks] int64: every rank's data [2,
most rows, H] and flags [2, most rows, ranks] int32. `epochs` [most rows] int32 counts this rank's calls per row. Data
and flags are double-buffered: a rank that writes a buffer again has seen every rank's flag of the call between, and a
rank sets that flag only after it has read the buffer.

All ranks must have the same number of rows, few enough for their programs to run at the same time. Only a device can
show that flags and data become visible in order (release and acquire at system scope).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from outrider.kernels import reference
from outrider.kernels.gpu.language import jit, power_of_two, tl
from outrider.kernels.gpu.norms import store_joined, sum_of_places
from outrider.kernels.gpu.ops import define

MOST_ROWS = 128


@jit
def set_flag(ADDRESSES, peer, place, rank, epoch, RANKS: tl.constexpr) -> None:
    """Tells `peer` that this rank has written `place`."""
    flags = tl.load(ADDRESSES + RANKS + peer).to(tl.pointer_type(tl.int32))
    tl.atomic_xchg(flags + place * RANKS + rank, epoch, sem="release", scope="sys")


@jit
def await_flags(ADDRESSES, rank, place, epoch, RANKS: tl.constexpr) -> None:
    """Waits until every rank has written `place`."""
    flags = tl.load(ADDRESSES + RANKS + rank).to(tl.pointer_type(tl.int32))
    for peer in tl.static_range(RANKS):
        while tl.atomic_add(flags + place * RANKS + peer, 0, sem="acquire", scope="sys") != epoch:
            pass
    tl.debug_barrier()


@jit
def exchange_row(own, TYPE: tl.constexpr, at, inside, ADDRESSES, EPOCHS, row, rank, row_bytes, RANKS: tl.constexpr,
                 MOST: tl.constexpr) -> tl.tensor:  # fmt: skip
    """Writes `own` to this rank's buffer, and waits until every rank has written the row. Its byte offset in each."""
    epoch = tl.load(EPOCHS + row) + 1  # wraps around; `& 1`, since the remainder of a negative number is not positive
    place = (epoch & 1) * MOST + row
    data = (tl.load(ADDRESSES + rank) + place * row_bytes).to(tl.pointer_type(TYPE))
    tl.store(data + at, own.to(TYPE), mask=inside)
    tl.debug_barrier()  # the whole row is written before any flag is set
    for peer in tl.static_range(RANKS):
        set_flag(ADDRESSES, peer, place, rank, epoch, RANKS)
    await_flags(ADDRESSES, rank, place, epoch, RANKS)
    tl.store(EPOCHS + row, epoch)
    return place * row_bytes


@jit
def _sum_join_norm(HIDDEN, OUTPUTS, WEIGHTS, NORM, STREAM, NORMED, ADDRESSES, EPOCHS, size, eps, rank, row_bytes,
                   PLACES: tl.constexpr, WEIGHTED: tl.constexpr, SIZE: tl.constexpr, RANKS: tl.constexpr,
                   MOST: tl.constexpr) -> None:  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, SIZE)
    inside = at < size
    own = sum_of_places(OUTPUTS, WEIGHTS, row, at, inside, size, PLACES, WEIGHTED, SIZE)
    offset = exchange_row(
        own, OUTPUTS.dtype.element_ty, at, inside, ADDRESSES, EPOCHS, row, rank, row_bytes, RANKS, MOST
    )
    total = tl.zeros((SIZE,), dtype=tl.float32)
    for peer in range(RANKS):
        peer_data = (tl.load(ADDRESSES + peer) + offset).to(tl.pointer_type(OUTPUTS.dtype.element_ty))
        total += tl.load(peer_data + at, mask=inside, other=0.0, volatile=True).to(tl.float32)
    store_joined(total, HIDDEN, NORM, STREAM, NORMED, row, at, inside, size, eps)


def launch(hidden: Tensor, outputs: Tensor, weights: Tensor | None, norm: Tensor, eps: float, addresses: Tensor,
           epochs: Tensor, rank: int, group: str) -> tuple[Tensor, Tensor]:  # fmt: skip
    rows, size = hidden.shape
    stream, out = torch.empty_like(hidden), torch.empty_like(hidden)
    _sum_join_norm[(rows,)](
        hidden, outputs, weights, norm, stream, out, addresses, epochs, size, eps, rank, size * outputs.element_size(),
        PLACES=len(outputs) // rows, WEIGHTED=weights is not None, SIZE=power_of_two(size), RANKS=addresses.shape[1],
        MOST=len(epochs), num_warps=16,
    )  # fmt: skip
    return stream, out


def process_group(name: str) -> Any:
    names: Any = dist.distributed_c10d
    return names._resolve_process_group(name)


def _twin(hidden: Tensor, outputs: Tensor, weights: Tensor | None, norm: Tensor, eps: float, addresses: Tensor,
          epochs: Tensor, rank: int, group: str) -> tuple[Tensor, Tensor]:  # fmt: skip
    """All-reduces over the process group of that name; "" is a group of this rank only."""
    part = outputs.clone() if weights is None else reference.weigh(outputs, weights)
    if group:
        dist.all_reduce(part, group=process_group(group))
    return reference.join_norm(hidden, part, None, norm, eps)


sum_join_norm = define(
    "sum_join_norm(Tensor hidden, Tensor outputs, Tensor? weights, Tensor norm, float eps, Tensor addresses,"
    " Tensor(a!) epochs, int rank, str group) -> (Tensor, Tensor)",
    launch,
    _twin,
)
