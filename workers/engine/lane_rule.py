"""Which rounds go through a stage as two lanes, and which rows each has. Pure and torch-free.

Every rank of a stage decides the same: by the Round, which all of them have whole.
"""

from dataclasses import dataclass

import numpy as np

from outrider.workers.parallel.overlap import Overlap
from outrider.workers.types.round import IntArray, Round, ints

_LEAST_SHARE = 0.4  # of the rows, for a lane whose sequences are whole


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneRule:
    """Which rounds go as two lanes.

    A data group that has nothing in a lane exchanges nothing within its tensor group there; where lanes hand over at
    such exchanges, every group must have rows in both.
    """

    least_rows: int  # of the data group with the most
    rows_in_both: bool

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
    """How many of the rows are the first lane's: half of them, as nearly as whole sequences allow.

    A sequence is cut where lanes would be all too unequal: its later rows see what its earlier ones write, since the
    first lane is always ahead.
    """
    rows = int(query_offsets[-1])
    between = int(query_offsets[np.abs(2 * query_offsets - rows).argmin()])
    return between if min(between, rows - between) >= _LEAST_SHARE * rows else (rows + 1) // 2
