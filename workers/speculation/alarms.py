"""Signs that a drafter is broken and not just unlucky: counted, and each said once with its likely cause. Pure.

Hard text makes drafts unsure, and what is unsure may fail. So acceptance is held against what drafts of the same
confidence had come to before, on this checkpoint: a confident draft that fails is not the text's doing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from outrider.workers.speculation.acceptance import Kind, Made

COLLAPSE, DEAD_POSITION, STALE_CACHE, FAILURE = "acceptance_collapsed", "position_dead", "cache_stale", "drafter_failed"
ALARMS = (COLLAPSE, DEAD_POSITION, STALE_CACHE, FAILURE)

_WINDOW = 256  # judged drafts that are held against those before them
_LEARNING = 1024  # judged drafts before that
_BINS = 12  # of leads: each half as wide again in log(1 + lead)
_SHORTFALL, _DEVIATIONS = 0.7, 6.0  # a window is too low at so small a share of what was expected, beyond chance
_DEAD_TRIES, _LIVE_BEFORE = 64, 0.3  # a dead position was tried so often behind one that lives


@dataclass(slots=True)
class _Tally:
    tried: float = 0.0
    accepted: float = 0.0

    def add(self, stood: bool) -> None:
        self.tried += 1
        self.accepted += stood

    @property
    def rate(self) -> float:
        return self.accepted / self.tried if self.tried else 0.0


@dataclass(slots=True)
class _Window:
    """What was expected of the latest drafts, and what came."""

    expected: float = 0.0
    variance: float = 0.0
    accepted: float = 0.0
    labels: list[tuple[int, bool]] = field(default_factory=list)  # bins, and whether it stood

    @property
    def low(self) -> bool:
        missing = self.expected - self.accepted
        return self.accepted < _SHORTFALL * self.expected and missing > _DEVIATIONS * math.sqrt(self.variance + 1.0)


class _History:
    """Of one kind of drafts."""

    def __init__(self) -> None:
        self.judged = self.waiting = 0
        self.bins = [_Tally() for _ in range(_BINS)]
        self.positions: list[_Tally] = []
        self._latest: list[tuple[Sequence[float], int]] = []  # leads that wait to be read, and how many of them stood

    def add(self, leads: Sequence[float], accepted: int) -> None:
        self._latest.append((leads, accepted))
        self.waiting += len(leads)

    def read(self) -> _Window:
        """What came of the drafts that waited, beside what was expected of them."""
        window = _Window()
        for leads, accepted in self._latest:
            for place, lead in enumerate(leads):
                self._weigh(window, place, lead, place < accepted)
        self.judged += self.waiting
        self._latest, self.waiting = [], 0
        return window

    def _weigh(self, window: _Window, place: int, lead: float, stood: bool) -> None:
        while len(self.positions) <= place:
            self.positions.append(_Tally())
        self.positions[place].add(stood)
        bin = int(min(math.log1p(max(lead, 0.0)) / math.log(1.5), _BINS - 1))
        rate = self.bins[bin].rate
        window.expected += rate
        window.variance += rate * (1.0 - rate)
        window.accepted += stood
        window.labels.append((bin, stood))

    def trust(self, window: _Window) -> None:
        """Takes its labels in: they are not held to be a fault's."""
        for bin, stood in window.labels:
            self.bins[bin].add(stood)


class Alarms:
    """Watches what becomes of drafts. `counts` grows for as long as something is wrong."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(ALARMS, 0)
        self._said: set[tuple[str, str, int]] = set()
        self._histories: dict[tuple[Kind, bool], _History] = {}

    def judged(self, made: Made, judged: int, accepted: int, *, gap: bool = False) -> list[str]:
        """Of a sequence's drafts the first `judged` got an answer; says what is newly wrong, each thing once.

        `gap`: the drafter had not followed all of the sequence.
        """
        history = self._histories.get((made.kind, gap))
        if history is None:
            history = self._histories[made.kind, gap] = _History()
        history.add(made.leads[:judged], accepted)
        if history.waiting < _WINDOW:
            return []
        window = history.read()
        return [*self._dead(made.kind, history, window), *self._weighed(made.kind, history, window, gap)]

    def failed(self, drafter: str, reason: str) -> list[str]:
        """The drafter raised an error."""
        return self._raise(FAILURE, drafter, 0, f"drafter {drafter} failed ({reason}): going on without its drafts")

    def _weighed(self, kind: Kind, history: _History, window: _Window, gap: bool) -> list[str]:
        whole = self._histories.get((kind, False))
        said: list[str] = []
        low = history.judged > _LEARNING + _WINDOW and window.low
        if low:
            share = window.accepted / window.expected
            said = self._raise(COLLAPSE, kind.drafter, kind.heat, _COLLAPSE.format(kind.drafter, share))
        elif gap and whole is not None and whole.judged > _WINDOW and _rate(history) < 0.5 * _rate(whole):
            said = self._raise(STALE_CACHE, kind.drafter, kind.heat, _STALE.format(kind.drafter))
        if not low:
            history.trust(window)
        return said

    def _dead(self, kind: Kind, history: _History, window: _Window) -> list[str]:
        said: list[str] = []
        for place, tally in enumerate(history.positions):
            lives = place == 0 or history.positions[place - 1].rate >= _LIVE_BEFORE
            if tally.tried >= _DEAD_TRIES and not tally.accepted and lives and _confident(window):
                said += self._raise(DEAD_POSITION, kind.drafter, place, _DEAD.format(place + 1, kind.drafter))
        return said

    def _raise(self, alarm: str, drafter: str, place: int, text: str) -> list[str]:
        self.counts[alarm] += 1
        if (alarm, drafter, place) in self._said:
            return []
        self._said.add((alarm, drafter, place))
        return [text]


def _rate(history: _History) -> float:
    return sum(t.accepted for t in history.positions) / max(1.0, sum(t.tried for t in history.positions))


def _confident(window: _Window) -> bool:
    """Whether its drafts were sure of themselves: half of them or more in the upper half of the bins."""
    return sum(bin >= _BINS // 4 for bin, _ in window.labels) >= len(window.labels) / 2


_COLLAPSE = (
    "drafts of {} are accepted {:.0%} as often as their confidence used to mean: is the drafter fed the right hidden "
    "states, and does it sample as the model does?"
)
_DEAD = (
    "draft {} of {} is never accepted, the one before it is: does the recursion recycle the state after "
    "shared_head.norm, and does the cache hold the drafts' own entries?"
)
_STALE = (
    "drafts of {} for sequences that it did not follow from the start are accepted less than half as often as others: "
    "its cache misses their beginning"
)
