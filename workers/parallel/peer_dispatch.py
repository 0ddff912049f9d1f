"""Dispatch of small rounds to spread experts, over memory that all GPUs of the stage access (kernels/gpu/dispatch.py).

Unlike AllToAll, the host waits for nothing, since no sizes are exchanged; so CUDA graphs can capture it. All data
groups run the same number of rows, some of them padding. The outputs have the same bits.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from outrider.kernels.gpu.dispatch import MOST_ROWS, gather_rows, return_outputs
from outrider.workers.parallel.collectives.peer_memory import Area, PeerAreas
from outrider.workers.parallel.shard import Shard
from outrider.workers.parallel.sharing import Sharing

# Rows [n, hidden], and the slots of each, [n, k] -> outputs [n * k, hidden]; those of other ranks' slots are undefined.
RunSlots = Callable[[Tensor, Tensor], Tensor]
_SLOT_BYTES = 4


def dispatch_areas(shard: Shard, hidden: int, places: int, dtype: torch.dtype) -> list[Area]:
    """For rows with their slots, and for the outputs of rows."""
    ranks = shard.datas * shard.tensors
    rows = Area(MOST_ROWS, hidden * dtype.itemsize + places * _SLOT_BYTES, shard.datas)
    return [rows, Area(MOST_ROWS, places * shard.cut(hidden).widest * dtype.itemsize, ranks)]


class PeerDispatch:
    """Expert slots are distributed over the stage's ranks. Every rank of the stage calls it for every MoE layer."""

    def __init__(self, sharing: Sharing, areas: PeerAreas, hidden: int, slots: int) -> None:
        shard, stage = sharing.shard, sharing.stage
        self._shard, self._group = shard, areas.group
        self._rank, self._each = stage.rank, slots // stage.size
        self._cut = shard.cut(hidden)
        rows, self._outputs = areas.areas
        # A row's partners are the ranks with the same place in their tensor groups.
        self._rows = rows._replace(addresses=rows.addresses[:, shard.tensor :: shard.tensors].contiguous())
        borders = [self._cut.begin(tensor) for tensor in range(shard.tensors + 1)]
        self._borders = torch.tensor(borders, dtype=torch.int32, device=rows.addresses.device)

    def __call__(self, x: Tensor, slots: Tensor, seen: Tensor, rows: int, run: RunSlots) -> Tensor:
        """As ExpertDispatch: `x` [R, hidden], `slots` [R, k] -> [R, k, own columns].

        `seen` [R, 2] of the batch: padding attends to nothing. `rows`: that every data group pads its own to.
        """
        count = len(x)
        x, slots, seen = (functional.pad(each, (0, 0, 0, rows - count)) if rows > count else each
                          for each in (x, slots, seen))  # fmt: skip
        shard, own = self._shard, (self._rank * self._each, self._each)
        came, wanted = gather_rows(
            x, slots, seen, *self._rows[:2], shard.data, *own, self._rows.row_bytes, shard.tensor, shard.tensors,
            self._group,
        )  # fmt: skip
        outputs: Tensor = return_outputs(
            run(came, wanted), wanted, seen, self._borders, *self._outputs[:2], self._rank, *own,
            self._outputs.row_bytes, self._cut.widest, self._cut.width(shard.tensor), shard.tensors, self._group,
        )  # fmt: skip
        return outputs[:count]
