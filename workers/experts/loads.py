"""How many rows each expert took in the last rounds. Torch-free; fed by the ranks that route, read by who balances."""

import numpy as np

from outrider.workers.experts.placement import IntArray


class ExpertLoads:
    """Counts of one rank's layers over a window of rounds: the oldest round falls out as a new one comes in."""

    def __init__(self, layers: int, experts: int, window: int) -> None:
        if min(layers, experts, window) < 1:
            raise ValueError(f"layers, experts and window must be at least 1, got {layers}, {experts}, {window}")
        self._rounds = np.zeros((window, layers, experts), dtype=np.int64)
        self._total = np.zeros((layers, experts), dtype=np.int64)
        self._next = 0

    def begin_round(self) -> None:
        """What is counted from here on is of a new round."""
        self._next = (self._next + 1) % len(self._rounds)
        self._total -= self._rounds[self._next]
        self._rounds[self._next] = 0

    def count(self, layer: int, experts: IntArray) -> None:
        """The experts that a layer's rows chose, [rows, chosen]."""
        chosen = np.bincount(experts.ravel(), minlength=self._total.shape[1])
        self._rounds[self._next, layer] += chosen
        self._total[layer] += chosen

    @property
    def total(self) -> IntArray:
        """Of the window, [layers, experts]; a copy."""
        return self._total.copy()
