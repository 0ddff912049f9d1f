"""How many rows each expert took of late. Torch-free; fed with what ranks counted, read by who balances."""

import numpy as np

from outrider.workers.experts.placement import IntArray


class ExpertLoads:
    """Counts over a window of reports: the oldest falls out as a new one comes in."""

    def __init__(self, layers: int, experts: int, window: int) -> None:
        if min(layers, experts, window) < 1:
            raise ValueError(f"layers, experts and window must be at least 1, got {layers}, {experts}, {window}")
        self._reports = np.zeros((window, layers, experts), dtype=np.int64)
        self._total = np.zeros((layers, experts), dtype=np.int64)
        self._next = 0

    def add(self, counts: IntArray) -> None:
        """One report, [layers, experts]."""
        self._total += counts - self._reports[self._next]
        self._reports[self._next] = counts
        self._next = (self._next + 1) % len(self._reports)

    @property
    def total(self) -> IntArray:
        """Of the window, [layers, experts]; a copy."""
        return self._total.copy()
