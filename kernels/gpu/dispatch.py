"""Rows to experts on other ranks and outputs back, over memory that all GPUs of the stage access (reduce.py).

Nothing depends on how many rows go where: every data group runs the same number of rows R, some of them padding. So the
host waits for nothing, and CUDA graphs can capture it. Slots are numbered rank by rank; -1 stands for none.

`gather_rows`: x [R, H], ids [R, places] -> rows [R * datas, H], slots [R * datas, places]: row 0 of every data group,
then row 1, and so on. A program reads another group's row only if one of its slots is on this rank; the rest of the
result is undefined. `ids` may be the first columns of a wider tensor. The partners are the ranks with the same place in
their tensor groups.

`return_outputs`: outputs [R * datas * places, H] of those rows -> [R, places, own columns]. The first launch writes
each output of an own slot to the ranks of the row's tensor group, each its columns; the second waits for all ranks and
reads what they wrote here. The first waits for nobody, so its programs need not all run at the same time.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from outrider.kernels.gpu.language import jit, power_of_two, tl
from outrider.kernels.gpu.ops import define
from outrider.kernels.gpu.reduce import await_flags, exchange_row, process_group, set_flag

MOST_ROWS = 64


@jit
def _gather_rows(X, IDS, SEEN, ROWS, SLOTS, ADDRESSES, EPOCHS, size, stride, rank, first, each, row_bytes, ids_at,
                 PLACES: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr, RANKS: tl.constexpr,
                 MOST: tl.constexpr) -> None:  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    place, at = tl.arange(0, WIDTH), tl.arange(0, SIZE)
    chosen, inside = place < PLACES, at < size
    ids = tl.load(IDS + row * stride + place, mask=chosen, other=-1)
    ids = tl.where(tl.load(SEEN + row * 2 + 1) > 0, ids, -1)  # padding sees nothing, and needs no expert
    half = (tl.load(EPOCHS + row) + 1) & 1
    own_ids = (tl.load(ADDRESSES + rank) + (half * MOST + row) * row_bytes + ids_at).to(tl.pointer_type(tl.int32))
    tl.store(own_ids + place, ids, mask=chosen)
    own = tl.load(X + row * size + at, mask=inside)
    offset = exchange_row(own, X.dtype.element_ty, at, inside, ADDRESSES, EPOCHS, row, rank, row_bytes, RANKS, MOST)
    for peer in range(RANKS):
        data = tl.load(ADDRESSES + peer) + offset
        slots = tl.load((data + ids_at).to(tl.pointer_type(tl.int32)) + place, mask=chosen, other=-1, volatile=True)
        tl.store(SLOTS + (row * RANKS + peer) * PLACES + place, slots, mask=chosen)
        if tl.max(((slots >= first) & (slots < first + each)).to(tl.int32), 0) > 0:
            part = tl.load(data.to(tl.pointer_type(X.dtype.element_ty)) + at, mask=inside, volatile=True)
            tl.store(ROWS + (row * RANKS + peer) * size + at, part, mask=inside)


@jit
def _send_outputs(OUTPUTS, SLOTS, BORDERS, ADDRESSES, EPOCHS, size, rank, first, each, row_bytes, place_bytes,
                  PLACES: tl.constexpr, DATAS: tl.constexpr, TENSORS: tl.constexpr, SIZE: tl.constexpr,
                  MOST: tl.constexpr) -> None:  # fmt: skip
    number = tl.program_id(0).to(tl.int64)
    row, data = number // DATAS, number % DATAS
    epoch = tl.load(EPOCHS + row) + 1
    held = (epoch & 1) * MOST + row
    at = tl.arange(0, SIZE)
    for place in range(PLACES):
        pair = number * PLACES + place
        slot = tl.load(SLOTS + pair)
        if (slot >= first) & (slot < first + each):
            for tensor in range(TENSORS):
                begin = tl.load(BORDERS + tensor)
                inside = at < tl.load(BORDERS + tensor + 1) - begin
                part = tl.load(OUTPUTS + pair * size + begin + at, mask=inside)
                target = tl.load(ADDRESSES + data * TENSORS + tensor) + held * row_bytes + place * place_bytes
                tl.store(target.to(tl.pointer_type(OUTPUTS.dtype.element_ty)) + at, part, mask=inside)
    tl.debug_barrier()  # all of the row's outputs are written before any flag is set
    for tensor in tl.static_range(TENSORS):
        set_flag(ADDRESSES, data * TENSORS + tensor, held, rank, epoch, DATAS * TENSORS)


@jit
def _take_outputs(SEEN, OUT, ADDRESSES, EPOCHS, width, rank, row_bytes, place_bytes, PLACES: tl.constexpr,
                  SIZE: tl.constexpr, RANKS: tl.constexpr, MOST: tl.constexpr) -> None:  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    epoch = tl.load(EPOCHS + row) + 1
    held = (epoch & 1) * MOST + row
    await_flags(ADDRESSES, rank, held, epoch, RANKS)
    at = tl.arange(0, SIZE)
    written = at < tl.where(tl.load(SEEN + row * 2 + 1) > 0, width, 0)
    data = tl.load(ADDRESSES + rank) + held * row_bytes
    for place in range(PLACES):
        own = (data + place * place_bytes).to(tl.pointer_type(OUT.dtype.element_ty))
        part = tl.load(own + at, mask=written, other=0.0, volatile=True)
        tl.store(OUT + (row * PLACES + place) * width + at, part, mask=at < width)
    tl.store(EPOCHS + row, epoch)


def launch_gather(x: Tensor, ids: Tensor, seen: Tensor, addresses: Tensor, epochs: Tensor, rank: int, first: int,
                  each: int, row_bytes: int, tensor: int, tensors: int,
                  group: str) -> tuple[Tensor, Tensor]:  # fmt: skip
    (rows, size), places, datas = x.shape, ids.shape[1], addresses.shape[1]
    out, slots = x.new_empty(rows * datas, size), ids.new_empty(rows * datas, places)
    _gather_rows[(rows,)](
        x, ids, seen, out, slots, addresses, epochs, size, ids.stride(0), rank, first, each, row_bytes,
        size * x.element_size(),
        PLACES=places, WIDTH=power_of_two(places), SIZE=power_of_two(size), RANKS=datas, MOST=len(epochs), num_warps=8,
    )  # fmt: skip
    return out, slots


def launch_return(outputs: Tensor, slots: Tensor, seen: Tensor, borders: Tensor, addresses: Tensor, epochs: Tensor,
                  rank: int, first: int, each: int, row_bytes: int, widest: int, width: int, tensors: int,
                  group: str) -> Tensor:  # fmt: skip
    rows, places, ranks = len(seen), slots.shape[1], addresses.shape[1]
    place_bytes = widest * outputs.element_size()
    out = outputs.new_empty(rows, places, width)
    same = {"PLACES": places, "SIZE": power_of_two(widest), "MOST": len(epochs), "num_warps": 8}
    _send_outputs[(len(slots),)](
        outputs, slots, borders, addresses, epochs, outputs.shape[1], rank, first, each, row_bytes, place_bytes,
        DATAS=ranks // tensors, TENSORS=tensors, **same,
    )  # fmt: skip
    _take_outputs[(rows,)](seen, out, addresses, epochs, width, rank, row_bytes, place_bytes, RANKS=ranks, **same)
    return out


def _gather_twin(x: Tensor, ids: Tensor, seen: Tensor, addresses: Tensor, epochs: Tensor, rank: int, first: int,
                 each: int, row_bytes: int, tensor: int, tensors: int,
                 group: str) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Over the stage's process group of that name; "" is a stage whose other ranks have only padding."""
    ids = torch.where(seen[:, 1:] > 0, ids, -1)
    rows, slots = (_gathered(each, padding, addresses.shape[1], rank, tensor, tensors, group)
                   for each, padding in ((x, 0), (ids, -1)))  # fmt: skip
    return rows.transpose(0, 1).flatten(0, 1), slots.transpose(0, 1).flatten(0, 1)


def _gathered(part: Tensor, padding: int, datas: int, rank: int, tensor: int, tensors: int, group: str) -> Tensor:
    """[datas, R, ..]: `part` of every partner."""
    if not group:
        alone = part.new_full((datas, *part.shape), padding)
        alone[rank] = part
        return alone
    own = part.contiguous().view(torch.uint8)
    parts = [torch.empty_like(own) for _ in range(datas * tensors)]
    dist.all_gather(parts, own, group=process_group(group))
    return torch.stack([each.view(part.dtype) for each in parts[tensor::tensors]])


def _return_twin(outputs: Tensor, slots: Tensor, seen: Tensor, borders: Tensor, addresses: Tensor, epochs: Tensor,
                 rank: int, first: int, each: int, row_bytes: int, widest: int, width: int, tensors: int,
                 group: str) -> Tensor:  # fmt: skip
    rows, places, ranks = len(seen), slots.shape[1], addresses.shape[1]
    datas, edges = ranks // tensors, borders.tolist()
    by_group = outputs.view(rows, datas, places, -1).transpose(0, 1)  # [datas, R, places, H]
    sent = outputs.new_zeros(datas, tensors, rows, places, widest)
    for tensor in range(tensors):
        begin, end = edges[tensor], edges[tensor + 1]
        sent[:, tensor, ..., : end - begin] = by_group[..., begin:end]
    came = sent.flatten(0, 1)
    if group:
        received = torch.empty_like(came).view(torch.uint8)
        dist.all_to_all_single(received, came.view(torch.uint8), group=process_group(group))
        came = received.view(outputs.dtype)
    own = slots.view(rows, datas, places)[:, rank // tensors]  # [R, places]
    source = own.div(each, rounding_mode="floor").clamp(min=0).long()
    index = source[None, ..., None].expand(1, -1, -1, width)
    return came[..., :width].gather(0, index)[0] * (own >= 0).unsqueeze(2)


gather_rows = define(
    "gather_rows(Tensor x, Tensor ids, Tensor seen, Tensor addresses, Tensor(a!) epochs, int rank, int first, int each,"
    " int row_bytes, int tensor, int tensors, str group) -> (Tensor, Tensor)",
    launch_gather,
    _gather_twin,
)
return_outputs = define(
    "return_outputs(Tensor outputs, Tensor slots, Tensor seen, Tensor borders, Tensor addresses, Tensor(a!) epochs,"
    " int rank, int first, int each, int row_bytes, int widest, int width, int tensors, str group) -> Tensor",
    launch_return,
    _return_twin,
    launches=2,
)
