"""A tensor group's all-gather of columns, over the memory and flags of reduce.py, in one launch.

x [R, w] on each rank -> [R, ranks * w], in rank order, the same on all of them. One program per row. `row_bytes` is the
size of a row in the ranks' buffers, the same for every operation over them, and at least w values.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from outrider.kernels.gpu.language import jit, power_of_two, tl
from outrider.kernels.gpu.ops import define
from outrider.kernels.gpu.reduce import exchange_row, process_group


@jit
def _gather_columns(X, OUT, ADDRESSES, EPOCHS, width, rank, row_bytes, SIZE: tl.constexpr, RANKS: tl.constexpr,
                    MOST: tl.constexpr) -> None:  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, SIZE)
    inside = at < width
    own = tl.load(X + row * width + at, mask=inside)
    offset = exchange_row(own, X.dtype.element_ty, at, inside, ADDRESSES, EPOCHS, row, rank, row_bytes, RANKS, MOST)
    for peer in range(RANKS):
        data = (tl.load(ADDRESSES + peer) + offset).to(tl.pointer_type(X.dtype.element_ty))
        part = tl.load(data + at, mask=inside, volatile=True)
        tl.store(OUT + (row * RANKS + peer) * width + at, part, mask=inside)


def launch(x: Tensor, addresses: Tensor, epochs: Tensor, row_bytes: int, rank: int, group: str) -> Tensor:
    rows, width = x.shape
    ranks = addresses.shape[1]
    out = x.new_empty(rows, ranks * width)
    if rows:
        _gather_columns[(rows,)](
            x, out, addresses, epochs, width, rank, row_bytes, SIZE=power_of_two(width), RANKS=ranks, MOST=len(epochs)
        )
    return out


def _twin(x: Tensor, addresses: Tensor, epochs: Tensor, row_bytes: int, rank: int, group: str) -> Tensor:
    """Over the process group of that name; "" is a group of this rank only."""
    if not group:
        return x.clone()
    own = x.contiguous().view(torch.uint8)
    parts = [torch.empty_like(own) for _ in range(addresses.shape[1])]
    dist.all_gather(parts, own, group=process_group(group))
    return torch.cat([part.view(x.dtype) for part in parts], dim=1)


gather_columns = define(
    "gather_columns(Tensor x, Tensor addresses, Tensor(a!) epochs, int row_bytes, int rank, str group) -> Tensor",
    launch,
    _twin,
)
