"""The rows that a model runs over, as flat arrays: a Round's query tokens, or an MTP module's input pairs."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """R rows of S sequences, sequence by sequence."""

    token_ids: IntArray  # [R]
    rope_positions: IntArray  # [R]
    cache_positions: IntArray  # [R] slot in its sequence: the row writes it, and attends up to it
    query_offsets: IntArray  # [S+1] into the rows
    write_from: IntArray  # [S] rows at earlier slots write nothing
    block_offsets: IntArray  # [S+1] into block_ids
    block_ids: IntArray  # [B] each sequence's block table
    first_slots: IntArray  # [S] the first slot that rows attend to: 0 for the model, 1 or later for MTP modules
    most_rows: int | None = None  # no data group has more; all know this number, or none does

    def __len__(self) -> int:
        return len(self.token_ids)

    def between(self, first: int, end: int) -> "Rows":
        """Rows [first, end) as Rows of their own; sequences at the borders are cut."""
        begins, ends = self.query_offsets[:-1], self.query_offsets[1:]
        low = int(np.searchsorted(ends, first, side="right"))
        high = max(low, int(np.searchsorted(begins, end)))
        blocks = self.block_offsets[low : high + 1]
        return Rows(
            token_ids=self.token_ids[first:end],
            rope_positions=self.rope_positions[first:end],
            cache_positions=self.cache_positions[first:end],
            query_offsets=self.query_offsets[low : high + 1].clip(first, end) - first,
            write_from=self.write_from[low:high],
            block_offsets=blocks - blocks[0],
            block_ids=self.block_ids[blocks[0] : blocks[-1]],
            first_slots=self.first_slots[low:high],
        )

    def alone(self, which: IntArray) -> "Rows":
        """The rows `which` [n], each as its own sequence."""
        owners = np.searchsorted(self.query_offsets, which, side="right") - 1  # [n]
        tables = [self.block_ids[self.block_offsets[s] : self.block_offsets[s + 1]] for s in owners]
        return Rows(
            token_ids=self.token_ids[which],
            rope_positions=self.rope_positions[which],
            cache_positions=self.cache_positions[which],
            query_offsets=np.arange(len(which) + 1),
            write_from=self.write_from[owners],
            block_offsets=np.cumsum([0, *map(len, tables)]),
            block_ids=np.concatenate([self.block_ids[:0], *tables]),
            first_slots=self.first_slots[owners],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Connects R pairs with the states one slot before them, which are the input of MTP modules after the first."""

    before: IntArray  # [R] the pair one slot before; R and above: index into `kept`; unused if `reach` is 1
    reach: IntArray  # [R] how many modules process the pair, at least 1
    kept: Tensor  # [C, modules - 1, hidden] states of pairs of earlier calls
    lasts: IntArray  # [K] pairs whose states later calls need: each sequence's last
    leaves: Tensor  # [K, modules - 1, hidden] the call writes them here
