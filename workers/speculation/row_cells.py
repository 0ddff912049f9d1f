"""By number of rows, how rounds compare with what a line says of them. Pure."""

import math

import numpy as np
from numpy.typing import NDArray

_SINGLE, _PER_DOUBLING = 32, 8
_MEMORY, _TRUST = 24.0, 3.0  # rounds: that a correction remembers, and that it takes to be half believed
_FEW = 6.0  # rounds that are not enough to know a cell
_STALE = 300  # rounds after which a correction counts half, and should be measured again
_CLIP = 2.0


class RowCells:
    """Corrections. Rows of one cell share theirs: each number up to 32, then eight to a doubling."""

    def __init__(self) -> None:
        self._ratios: dict[int, float] = {}
        self._seen: dict[int, float] = {}
        self._last: dict[int, int] = {}
        self._rounds = 0

    def observe(self, rows: int, ratio: float) -> None:
        """A round of so many rows took `ratio` times what the line says."""
        cell = _cell(rows)
        self._rounds += 1
        seen = min(self._seen.get(cell, 0.0) * self._fresh(cell), _MEMORY) + 1.0
        before = self._ratios.get(cell, 1.0)
        self._ratios[cell] = before + (min(max(ratio, 1.0 / _CLIP), _CLIP) - before) / seen
        self._seen[cell], self._last[cell] = seen, self._rounds

    def known(self, rows: int) -> bool:
        """Whether as many rounds of so many rows were seen as it takes to know them."""
        return self._seen.get(_cell(rows), 0.0) >= _FEW

    def stale(self, rows: int) -> bool:
        """Whether none was seen for long, or few ever."""
        cell = _cell(rows)
        return self._seen.get(cell, 0.0) < _FEW or self._rounds - self._last[cell] > _STALE

    def factors(self, most: int) -> NDArray[np.float64]:
        """What the line is to be multiplied with, by rows, 0 .. `most`."""
        rows = np.arange(most + 1)
        wide = _SINGLE + np.rint(_PER_DOUBLING * np.log2(np.maximum(rows, 1) / _SINGLE))
        cells = np.where(rows <= _SINGLE, rows, wide).astype(np.int64)
        by_cell = np.ones(int(cells[-1]) + 1)
        for cell, ratio in self._ratios.items():
            if cell < len(by_cell):
                trust = self._seen[cell] * self._fresh(cell)
                by_cell[cell] = 1.0 + (ratio - 1.0) * trust / (trust + _TRUST)
        return by_cell[cells]

    def _fresh(self, cell: int) -> float:
        return math.exp2(-(self._rounds - self._last.get(cell, self._rounds)) / _STALE)


def _cell(rows: int) -> int:
    if rows <= _SINGLE:
        return rows
    return _SINGLE + round(_PER_DOUBLING * math.log2(rows / _SINGLE))
