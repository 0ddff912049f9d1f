"""Rounds without drafts in a row, that are run to be measured with nothing done beside them. Pure counting."""

import math
from collections.abc import Iterable

from outrider.workers.speculation.base_rounds import BURST, CALM, FEWEST
from outrider.workers.speculation.gain import size_class
from outrider.workers.speculation.known_times import Shape

_MOST = 64  # rounds that a burst waits for those of a size that may no longer occur: measured on mixed load
_CALM_S, _BURST_S = 0.003, 0.012  # of rounds: what caches take to be theirs again; what noise is small in


class Undisturbed:
    """All lanes of a replica are measured at one time."""

    def __init__(self) -> None:
        # Lanes in which such rounds are to be known before others are weighed, and of about how many sequences
        self._wanted = dict[int, int]()
        self._busy = set[int]()  # lanes in which sequences decode
        self._rounds: list[tuple[Shape, float]] = []
        self._calm, self._burst = CALM, BURST  # rounds of one lane: passed over, and measured

    @property
    def wanted(self) -> bool:
        """Whether nobody is to draft for them."""
        return len(self._wanted) > 0

    @property
    def missing(self) -> int:
        """Rounds that they still take: of each size that is wanted enough, whatever other lanes run."""
        if not self._wanted:
            return 0
        sizes = [size_class(shape.sequences) for shape, _ in self._rounds[self._calm :]]
        fewest = min([sizes.count(size) for size in self._wanted.values()])
        return max(self._calm + self._burst * len(self._busy) - len(self._rounds), FEWEST - fewest, 0)

    def want(self, lane: int, wanted: bool, takes_s: float = 0.0, sequences: int = 1) -> None:
        """Whether they are wanted in the lane, in which so many decode. `takes_s`: what one takes; 0: unknown."""
        self._busy.add(lane)
        if not wanted:
            self._no_longer(lane)
            return
        if not self._wanted:
            self._calm, self._burst = rounds_of(takes_s)
        self._wanted[lane] = size_class(sequences)

    def leave(self, lane: int) -> None:
        """Nobody decodes there."""
        self._busy.discard(lane)
        self._no_longer(lane)

    def _no_longer(self, lane: int) -> None:
        """What was run for it is dropped: rounds of another time are no part of the next burst."""
        self._wanted.pop(lane, None)
        if not self._wanted:
            self._rounds = []

    def add(self, rounds: Iterable[tuple[Shape, float]]) -> None:
        """Such rounds were run. A burst that does not come together is given up: its lanes draft on as before."""
        if self._wanted:
            self._rounds += rounds
        if len(self._rounds) >= _MOST and self.missing:
            self._wanted.clear()
            self._rounds = []

    def take(self) -> list[tuple[Shape, float]]:
        """All of them but for the first, which are slower. Lanes that want more say so."""
        taken, self._rounds = self._rounds[self._calm :], []
        self._wanted.clear()
        return taken


def rounds_of(takes_s: float) -> tuple[int, int]:
    """How many rounds that take so long are passed over, and then measured: few long ones tell as much as more."""
    if not takes_s:
        return CALM, BURST
    calm, burst = math.ceil(_CALM_S / takes_s), math.ceil(_BURST_S / takes_s)
    return min(max(calm, 1), CALM), min(max(burst, FEWEST), BURST)
