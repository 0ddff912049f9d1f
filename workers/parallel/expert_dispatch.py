"""Sends rows to the ranks that have their experts, and expert outputs back. No row is ever dropped.

An expert's output is computed completely on one rank. Then its columns go to the ranks of the row's tensor group that
own them, so that these ranks sum equally many values. `slots` says which slot processes each row. With expert
parallelism all ranks have equally many slots, numbered rank by rank; otherwise a slot is an expert.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from outrider.workers.parallel.sharing import Sharing

# Rows [pairs, hidden], and which of this rank's slots processes each, [pairs], in any order -> their outputs.
RunExperts = Callable[[Tensor, Tensor], Tensor]


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
        rows = x.unsqueeze(1).expand(-1, places, -1).flatten(0, 1)
        outputs = experts(rows, slots.flatten())
        return outputs.view(tokens, places, outputs.shape[1])


class MaskedDispatch:
    """Each rank has all rows and some of the experts; a sum over ranks follows. Implements ExpertDispatch.

    Outputs of other ranks' experts are zero here. Used with numerics "fast".
    """

    def __init__(self, sharing: Sharing, slots: int) -> None:
        self._each, self._rank = slots // sharing.stage.size, sharing.stage.rank

    def __call__(self, x: Tensor, slots: Tensor, experts: RunExperts) -> Tensor:
        flat = slots.flatten()
        own = (flat // self._each == self._rank).nonzero().flatten()
        made = x.new_zeros(len(flat), x.shape[1])
        made.index_copy_(0, own, experts(x.index_select(0, own // slots.shape[1]), flat[own]))
        return made.view(*slots.shape, x.shape[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sizes:
    """What one rank sends and receives for one layer. A pair is a row and one of its slots."""

    sent_rows: list[int]  # by rank of the stage
    received_rows: list[int]  # by rank
    pairs: list[int]  # by data group: pairs of its rows with slots of this rank
    returned_pairs: list[int]  # by rank: pairs of this rank's rows with its slots


class AllToAll:
    """Expert slots are distributed over the stage's ranks. Implements ExpertDispatch.

    Each row goes once to every data group with one of its slots' ranks: to the rank at the same place of that tensor
    group. On a GPU the host waits once, for the sizes that the exchanges need.
    """

    def __init__(self, sharing: Sharing, hidden: int, slots: int) -> None:
        self._shard, self._stage = sharing.shard, sharing.stage
        self._columns = sharing.shard.cut(hidden)
        self._each = slots // self._stage.size

    def __call__(self, x: Tensor, slots: Tensor, experts: RunExperts) -> Tensor:
        ranks = slots // self._each
        chosen = ranks.unsqueeze(2) == torch.arange(self._stage.size, device=x.device)  # [R, k, ranks]
        wanted = chosen.any(dim=1)  # [R, ranks]
        sizes = self._sizes(torch.stack([wanted.sum(dim=0), chosen.sum(dim=(0, 1))]))
        rows, came = self._rows(x, slots, wanted, sizes)
        flat = came.flatten()
        own = first_true(flat // self._each == self._stage.rank, sum(sizes.pairs))
        outputs = experts(rows.index_select(0, own // slots.shape[1]), flat[own])
        return self._return(outputs, ranks, sizes)

    def _sizes(self, own: Tensor) -> _Sizes:
        """`own` [2, ranks]: how many rows, and how many pairs, this rank's rows have for each rank."""
        shard, ranks, me = self._shard, self._stage.size, self._stage.rank
        alone = shard.datas == 1  # all ranks have the same rows
        table = [own.tolist()] * ranks if alone else self._stage.gather(own, "counts of rows").tolist()
        partners = range(shard.tensor, ranks, shard.tensors)
        return _Sizes(
            sent_rows=[table[me][0][rank] if rank in partners else 0 for rank in range(ranks)],
            received_rows=[table[rank][0][me] if rank in partners else 0 for rank in range(ranks)],
            pairs=[table[rank][1][me] for rank in partners],
            returned_pairs=table[me][1],
        )

    def _rows(self, x: Tensor, slots: Tensor, wanted: Tensor, sizes: _Sizes) -> tuple[Tensor, Tensor]:
        """All data groups' rows with slots of this rank, in order of the groups, and their slots."""
        by_partner = wanted[:, self._shard.tensor :: self._shard.tensors].T  # [data groups, R]
        sent = first_true(by_partner.flatten(), sum(sizes.sent_rows)) % max(len(x), 1)
        packed = torch.cat([x, slots.int().view(x.dtype)], dim=1).index_select(0, sent)
        if self._shard.datas > 1:
            packed = self._stage.exchange(packed, sizes.sent_rows, sizes.received_rows, "rows to experts")
        hidden = x.shape[1]
        return packed[:, :hidden], packed[:, hidden:].contiguous().view(torch.int32)

    def _return(self, outputs: Tensor, ranks: Tensor, sizes: _Sizes) -> Tensor:
        """Sends each group's ranks their columns of its pairs. Receives this rank's columns of its rows' pairs."""
        cut, width = self._columns, self._columns.width(self._shard.tensor)
        sent = [
            _widened(part[:, cut.slice(t)], cut.widest) for part in outputs.split(sizes.pairs) for t in range(cut.parts)
        ]
        came = self._stage.exchange(torch.cat(sent), [*map(len, sent)], sizes.returned_pairs, "expert outputs")
        order = ranks.flatten().argsort(stable=True)
        own = came.new_empty(len(came), width).index_copy_(0, order, came[:, :width])
        return own.view(*ranks.shape, width)


def _widened(part: Tensor, width: int) -> Tensor:
    """With columns of zeros, if it has fewer."""
    return part if part.shape[1] == width else functional.pad(part, (0, width - part.shape[1]))


def first_true(mask: Tensor, count: int) -> Tensor:
    """The indices where `mask` [n] is true. They are `count`; so the host need not wait for a GPU to count them."""
    return torch.nonzero_static(mask, size=count).flatten()
