"""Decides which rounds a stage runs as two lanes, and how rows are split between them. Pure and torch-free.

All ranks of a stage decide alike, since the decision depends only on the Round, and every rank has all of it.
"""

from dataclasses import dataclass

import numpy as np

from outrider.workers.parallel.collectives.overlap import Overlap
from outrider.workers.types.rounds.round import IntArray, Round, ints

_LEAST_SHARE = 0.4  # of the rows in the smaller lane; if it would have fewer, a sequence is split


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneRule:
    """Which rounds run as two lanes.

    A data group without rows in a lane skips its tensor-parallel exchanges there. If lanes switch at those exchanges,
    every data group must have rows in both lanes.
    """

    least_rows: int  # of the data group with the most rows
    rows_in_both: bool  # required of every data group

    @classmethod
    def of(cls, overlap: Overlap, least_rows: int) -> "LaneRule":
        return cls(least_rows=max(2, least_rows), rows_in_both=overlap.tensor)

    def two(self, round: Round, data_groups: int) -> bool:
        rows = rows_by_group(round, data_groups)
        return bool(rows.max() >= self.least_rows and (rows.min() > 1 or not self.rows_in_both))


def rows_by_group(round: Round, data_groups: int) -> IntArray:
    """[data groups]"""
    if not len(round.owners):
        return ints([round.rows])
    counts = np.bincount(round.owners, weights=np.diff(round.query_offsets), minlength=data_groups)
    return ints(counts)


def cut_of(query_offsets: IntArray) -> int:
    """Number of rows in the first lane: about half, between two sequences if possible.

    If the lanes would be too unequal, a sequence is split. This is correct because the first lane runs each layer
    first, so the cache entries of the sequence's earlier rows are written before its later rows read them.
    """
    rows = int(query_offsets[-1])
    between = int(query_offsets[np.abs(2 * query_offsets - rows).argmin()])
    return between if min(between, rows - between) >= _LEAST_SHARE * rows else (rows + 1) // 2
