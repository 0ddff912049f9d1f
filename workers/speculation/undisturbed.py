"""Rounds without drafts in a row, that are run to be measured with nothing done beside them. Pure counting."""

from outrider.workers.speculation.base_rounds import BURST, CALM
from outrider.workers.speculation.known_times import Shape


class Undisturbed:
    """All lanes of a replica are measured at one time."""

    def __init__(self) -> None:
        self._wanted = set[int]()  # lanes in which such rounds are to be known before others are weighed
        self._busy = set[int]()  # lanes in which sequences decode
        self._rounds: list[tuple[Shape, float]] = []

    @property
    def wanted(self) -> bool:
        """Whether nobody is to draft for them."""
        return len(self._wanted) > 0

    @property
    def missing(self) -> int:
        """Rounds that they still take."""
        return max(CALM + BURST * len(self._busy) - len(self._rounds), 0) if self._wanted else 0

    def want(self, lane: int, wanted: bool) -> None:
        """Whether they are wanted in the lane, in which sequences decode."""
        self._busy.add(lane)
        (self._wanted.add if wanted else self._no_longer)(lane)

    def leave(self, lane: int) -> None:
        """Nobody decodes there."""
        self._busy.discard(lane)
        self._no_longer(lane)

    def _no_longer(self, lane: int) -> None:
        """What was run for it is dropped: rounds of another time are no part of the next burst."""
        self._wanted.discard(lane)
        if not self._wanted:
            self._rounds = []

    def add(self, shape: Shape, round_s: float) -> None:
        """Such a round was run."""
        if self._wanted:
            self._rounds.append((shape, round_s))

    def take(self) -> list[tuple[Shape, float]]:
        """All of them but for the first, which are slower. Lanes that want more say so."""
        taken, self._rounds = self._rounds[CALM:], []
        self._wanted.clear()
        return taken
