"""How many rows each expert got recently. Torch-free. Ranks report the counts; the balancer reads them."""

import numpy as np

from outrider.workers.experts.placement import IntArray


class ExpertLoads:
    """Counts over a sliding window of reports."""

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
        """The window's sum, [layers, experts]; a copy."""
        return self._total.copy()
