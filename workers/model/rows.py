"""The rows that a model runs over: a Round's query tokens, or the pairs that an MTP module is fed. Flat arrays."""

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
    cache_positions: IntArray  # [R] the slot, of its sequence's own, that a row writes and the last it sees
    query_offsets: IntArray  # [S+1] into the rows
    write_from: IntArray  # [S] rows at earlier slots write nothing
    block_offsets: IntArray  # [S+1] into block_ids
    block_ids: IntArray  # [B] each sequence's block table
    first_slots: IntArray  # [S] the first slot that a row sees: 0 for the model, 1 or later for an MTP module

    def __len__(self) -> int:
        return len(self.token_ids)

    def between(self, first: int, end: int) -> "Rows":
        """Rows [first, end), as rows of their own: of a sequence that is cut, what lies between."""
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
        """The rows `which` [n], each as a sequence of its own."""
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
    """What joins R pairs to the states one slot before them: what MTP modules after the first are fed."""

    before: IntArray  # [R] the pair one slot before; from R on, of the kept ones; where `reach` is 1, nothing
    reach: IntArray  # [R] how many modules can take the pair in, at least 1
    kept: Tensor  # [C, modules - 1, hidden] states of pairs of earlier calls
    lasts: IntArray  # [K] pairs whose states later calls need: the last of each sequence
    leaves: Tensor  # [K, modules - 1, hidden] where the call puts them
