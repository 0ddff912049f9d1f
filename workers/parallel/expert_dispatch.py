"""Sends rows to the ranks that have their experts, and expert outputs back. No row is ever dropped.

An expert's output is computed completely on one rank. Then its columns go to the ranks of the row's tensor group that
own them, so that these ranks sum equally many values. `slots` says which slot processes each row. With expert
parallelism all ranks have equally many slots, numbered rank by rank; otherwise a slot is an expert.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from outrider.workers.parallel.sharing import Sharing
from outrider.workers.parallel.slices import Cut

# Rows [pairs, hidden], sorted by slot, and the number of rows for each of this rank's slots -> their outputs.
RunExperts = Callable[[Tensor, Mapping[int, int]], Tensor]
_FEW_ROWS = 16  # per data group: up to this, all rows are gathered, which takes fewer exchanges


class ExpertDispatch(Protocol):
    """Collective: every rank of the stage calls it for every layer with experts, even if it has no rows."""

    def __call__(self, x: Tensor, slots: Tensor, experts: RunExperts) -> Tensor:
        """`x` [R, hidden], `slots` [R, k] -> [R, k, own columns]: each expert's output, not yet weighted.

        With numerics "fast" and sums split over ranks, it returns [R, k, hidden]: this rank's summand of each output.
        """
        ...


class LocalDispatch:
    """This rank has all experts, or a slice of each. Implements ExpertDispatch."""

    def __call__(self, x: Tensor, slots: Tensor, experts: RunExperts) -> Tensor:
        tokens, places = slots.shape
        if tokens == 1:  # a row's experts are already sorted
            return experts(x.expand(places, -1), dict.fromkeys(slots[0].tolist(), 1)).view(1, places, -1)
        order = slots.flatten().argsort(stable=True)
        outputs = experts(x.index_select(0, order // places), counts_of(slots.flatten()))
        return torch.empty_like(outputs).index_copy_(0, order, outputs).view(tokens, places, -1)


class MaskedDispatch:
    """Each rank has all rows and some of the experts; a sum over ranks follows. Implements ExpertDispatch.

    Outputs of other ranks' experts are zero here. Used with numerics "fast".
    """

    def __init__(self, sharing: Sharing, slots: int) -> None:
        self._range = Cut(slots, sharing.stage.size).slice(sharing.stage.rank)

    def __call__(self, x: Tensor, slots: Tensor, experts: RunExperts) -> Tensor:
        flat = slots.flatten()
        own = ((flat >= self._range.start) & (flat < self._range.stop)).nonzero().flatten()
        own = own[flat[own].argsort(stable=True)]
        made = x.new_zeros(len(flat), x.shape[1])
        made.index_copy_(0, own, experts(x.index_select(0, own // slots.shape[1]), counts_of(flat[own])))
        return made.view(*slots.shape, -1)


class AllToAll:
    """Expert slots are distributed over the stage's ranks. Implements ExpertDispatch."""

    def __init__(self, sharing: Sharing, hidden: int, slots: int) -> None:
        self._shard, self._stage = sharing.shard, sharing.stage
        self._columns = sharing.shard.cut(hidden)
        self._slots = Cut(slots, self._stage.size)

    def __call__(self, x: Tensor, slots: Tensor, experts: RunExperts) -> Tensor:
        rows, chosen = self._all_rows(x, slots)
        sources = torch.cat([torch.full((len(part),), data) for data, part in enumerate(chosen)])
        flat = torch.cat(chosen).flatten()
        first, end = self._range(self._stage.rank)
        own = ((flat >= first) & (flat < end)).nonzero().flatten()
        own = own[flat[own].argsort(stable=True)]  # by slot, then by row
        row_of_pair = own // slots.shape[1]
        outputs = experts(torch.cat(rows).index_select(0, row_of_pair), counts_of(flat[own]))
        return self._return(outputs, sources.to(x.device)[row_of_pair], slots)

    def _all_rows(self, x: Tensor, slots: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """By data group: the rows that may be for this rank's experts, and their slots."""
        if self._shard.datas == 1:
            return [x], [slots]
        wanted = [self._wanted_by(self._rank_at(data), slots) for data in range(self._shard.datas)]
        table = self._stage.gather(self._announced(len(x), wanted, slots.device), "counts of rows").tolist()
        if max(row[-1] for row in table) <= _FEW_ROWS:
            return self._gathered(x, slots, [table[self._rank_at(data)][-1] for data in range(self._shard.datas)])
        here = [row[self._stage.rank] for row in table]
        return self._exchanged(x, slots, wanted, here)

    def _announced(self, rows: int, wanted: Sequence[Tensor], device: torch.device) -> Tensor:
        """The number of rows that this rank sends to each rank of the stage, followed by its total number of rows."""
        counts = [0] * self._stage.size
        for data, which in enumerate(wanted):
            counts[self._rank_at(data)] = len(which) if data != self._shard.data else 0
        return torch.tensor([*counts, rows], dtype=torch.int64, device=device)

    def _gathered(self, x: Tensor, slots: Tensor, rows: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
        """All rows of all data groups."""
        room = max(rows) - len(x)
        x_parts = self._stage.gather(torch.cat([x, x.new_zeros(room, x.shape[1])]), "rows to experts")
        slot_parts = self._stage.gather(torch.cat([slots, slots.new_zeros(room, slots.shape[1])]), "rows to experts")
        places = [(self._rank_at(data), count) for data, count in enumerate(rows)]
        return [x_parts[r, :count] for r, count in places], [slot_parts[r, :count] for r, count in places]

    def _exchanged(
        self, x: Tensor, slots: Tensor, wanted: Sequence[Tensor], here: Sequence[int]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Each other group's rows that chose this rank's experts; each row is sent once."""
        sent = torch.cat([which for data, which in enumerate(wanted) if data != self._shard.data])
        counts = [0] * self._stage.size
        for data, which in enumerate(wanted):
            counts[self._rank_at(data)] = len(which) if data != self._shard.data else 0
        parts = []
        for mine in (x, slots):
            came = self._stage.exchange(mine.index_select(0, sent), counts, here, "rows to experts")
            by_rank = torch.split(came, list(here))
            own = self._shard.data
            parts.append([mine if data == own else by_rank[self._rank_at(data)] for data in range(self._shard.datas)])
        return parts[0], parts[1]

    def _return(self, outputs: Tensor, sources: Tensor, slots: Tensor) -> Tensor:
        """Sends each group's ranks their columns. Receives this group's outputs of all pairs, sorted by expert."""
        by_group = [outputs[sources == data] for data in range(self._shard.datas)]
        slices = [self._columns.slice(rank) for rank in range(self._columns.parts)]
        sent = [part[:, columns].flatten() for part in by_group for columns in slices]
        width = self._columns.width(self._shard.tensor)
        flat = slots.flatten()
        order = flat.argsort(stable=True)
        counts = counts_of(flat)
        ranges = [self._range(rank) for rank in range(self._stage.size)]
        expected = [sum(counts.get(e, 0) for e in range(first, end)) * width for first, end in ranges]
        came = self._stage.exchange(torch.cat(sent), [len(part) for part in sent], expected, "expert outputs")
        came = came.view(-1, width)
        return torch.empty_like(came).index_copy_(0, order, came).view(*slots.shape, width)

    def _wanted_by(self, rank: int, slots: Tensor) -> Tensor:
        first, end = self._range(rank)
        return ((slots >= first) & (slots < end)).any(dim=1).nonzero().flatten()

    def _range(self, rank: int) -> tuple[int, int]:
        return self._slots.begin(rank), self._slots.begin(rank + 1)

    def _rank_at(self, data: int) -> int:
        """The rank of data group `data` at this rank's place in its tensor group. Rows are exchanged with it."""
        return data * self._shard.tensors + self._shard.tensor


def counts_of(slots: Tensor) -> dict[int, int]:
    """How often each slot occurs, in ascending order."""
    found, counts = torch.unique(slots, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))
