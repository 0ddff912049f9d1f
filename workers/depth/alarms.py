"""Signs that a drafter is broken and not just unlucky: counted, and each said once with its likely cause. Pure.

Hard text makes drafts unsure, and what is unsure may fail. So acceptance is held against what drafts of the same
confidence had come to before, on this checkpoint: a confident draft that fails is not the text's doing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from outrider.workers.depth.acceptance import DraftKind, Made

COLLAPSE, DEAD_POSITION, STALE_CACHE, FAILURE = "acceptance_collapsed", "position_dead", "cache_stale", "drafter_failed"
ALARMS = (COLLAPSE, DEAD_POSITION, STALE_CACHE, FAILURE)

_WINDOW = 256  # judged drafts that are held against those before them
_LEARNING = 4 * _WINDOW  # judged drafts before that
_BINS = 12  # of leads: each half as wide again in log(1 + lead)
_SHORTFALL, _DEVIATIONS = 0.7, 6.0  # a window is too low at so small a share of what was expected, beyond chance
_DEAD_TRIES, _LIVE_BEFORE = _WINDOW // 4, 0.3  # a dead position was tried so often of late, behind one that lives
_STALE_SHARE = 0.5  # of what drafts as sure are worth where all was followed
_SURE = 3  # the bin from which on drafts are sure of themselves: a lead of 2.4


@dataclass(slots=True)
class _Tally:
    tried: int = 0
    accepted: int = 0
    sure: int = 0  # of those tried: sure of themselves

    def add(self, bin: int, stood: bool) -> None:
        self.tried += 1
        self.accepted += stood
        self.sure += bin >= _SURE

    @property
    def rate(self) -> float:
        return self.accepted / self.tried if self.tried else 0.0


class _Window(NamedTuple):
    """What was expected of the latest drafts, and what came."""

    expected: float
    variance: float
    accepted: int

    def low(self, share: float = _SHORTFALL) -> bool:
        """Whether no more than this share came, which is not by chance."""
        missing = self.expected - self.accepted
        return self.accepted < share * self.expected and missing > _DEVIATIONS * math.sqrt(self.variance + 1.0)


class _AlarmHistory:
    """Of one kind of drafts."""

    def __init__(self) -> None:
        self.judged = self.waiting = 0
        self.bins = [_Tally() for _ in range(_BINS)]
        self.positions: list[_Tally] = []  # since their last verdict
        self.rates: list[float] = []  # by position, at that verdict
        self._latest: list[tuple[Sequence[float], int]] = []  # leads that wait to be read, and how many of them stood

    def add(self, leads: Sequence[float], accepted: int) -> None:
        self._latest.append((leads, accepted))
        self.waiting += len(leads)

    def read(self) -> list[tuple[int, bool]]:
        """Of the drafts that waited the bins, and whether they stood."""
        labels = []
        for leads, accepted in self._latest:
            for place, lead in enumerate(leads):
                if place == len(self.positions):
                    self.positions.append(_Tally())
                    self.rates.append(0.0)
                bin = int(min(math.log1p(max(lead, 0.0)) / math.log(1.5), _BINS - 1))
                self.positions[place].add(bin, place < accepted)
                labels.append((bin, place < accepted))
        self.judged += self.waiting
        self._latest, self.waiting = [], 0
        return labels

    def weigh(self, labels: Sequence[tuple[int, bool]]) -> _Window:
        """What came of these, beside what this history expects of them."""
        rates = [self.bins[bin].rate for bin, _ in labels]
        variance = sum(rate * (1.0 - rate) for rate in rates)
        return _Window(sum(rates), variance, sum(stood for _, stood in labels))

    def trust(self, labels: Sequence[tuple[int, bool]]) -> None:
        """Takes them in: they are not held to be a fault's."""
        for bin, stood in labels:
            self.bins[bin].add(bin, stood)


class Alarms:
    """Watches what becomes of drafts. `counts` grows for as long as something is wrong."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(ALARMS, 0)
        self._said: set[tuple[str, str, int]] = set()
        self._histories: dict[tuple[DraftKind, bool], _AlarmHistory] = {}

    def judged(self, made: Made, judged: int, accepted: int, *, gap: bool = False) -> list[str]:
        """Of a sequence's drafts the first `judged` got an answer; says what is newly wrong, each thing once.

        `gap`: the drafter had not followed all of the sequence.
        """
        history = self._histories.get((made.kind, gap))
        if history is None:
            history = self._histories[made.kind, gap] = _AlarmHistory()
        history.add(made.leads[:judged], accepted)
        if history.waiting < _WINDOW:
            return []
        labels = history.read()
        return [*self._dead(made.kind, history), *self._weighed(made.kind, history, labels, gap)]

    def failed(self, drafter: str, reason: str) -> list[str]:
        """The drafter raised an error."""
        return self._raise(FAILURE, drafter, 0, f"drafter {drafter} failed ({reason}): going on without its drafts")

    def _weighed(
        self, kind: DraftKind, history: _AlarmHistory, labels: Sequence[tuple[int, bool]], gap: bool
    ) -> list[str]:
        whole = self._histories.get((kind, False))
        window, said = history.weigh(labels), list[str]()
        low = history.judged > _LEARNING + _WINDOW and window.low()
        if low:
            share = window.accepted / window.expected
            said = self._raise(COLLAPSE, kind.drafter, kind.temperature_class, _COLLAPSE.format(kind.drafter, share))
        elif gap and whole is not None and whole.judged > _LEARNING and whole.weigh(labels).low(_STALE_SHARE):
            said = self._raise(STALE_CACHE, kind.drafter, kind.temperature_class, _STALE.format(kind.drafter))
        if not low:
            history.trust(labels)
        return said

    def _dead(self, kind: DraftKind, history: _AlarmHistory) -> list[str]:
        said: list[str] = []
        for place, tally in enumerate(history.positions):
            if tally.tried < _DEAD_TRIES:
                continue
            lives = place == 0 or history.rates[place - 1] >= _LIVE_BEFORE
            if not tally.accepted and lives and 2 * tally.sure >= tally.tried:
                text = _DEAD.format(place + 1, kind.drafter) if place else _DEAD_FIRST.format(kind.drafter)
                said += self._raise(DEAD_POSITION, kind.drafter, place, text)
            history.rates[place], history.positions[place] = tally.rate, _Tally()
        return said

    def _raise(self, alarm: str, drafter: str, place: int, text: str) -> list[str]:
        self.counts[alarm] += 1
        if (alarm, drafter, place) in self._said:
            return []
        self._said.add((alarm, drafter, place))
        return [text]


_COLLAPSE = (
    "drafts of {} are accepted {:.0%} as often as their confidence used to mean: is the drafter fed the right hidden "
    "states, and does it sample as the model does?"
)
_DEAD_FIRST = (
    "draft 1 of {} is never accepted, sure as it is: is the drafter fed the right hidden states, and does it sample as "
    "the model does?"
)
_DEAD = (
    "draft {} of {} is never accepted, the one before it is: does the recursion recycle the state after "
    "shared_head.norm, and does the cache hold the drafts' own entries?"
)
_STALE = (
    "drafts of {} for sequences that it did not follow from the start are accepted less than half as often as others "
    "that are as sure: its cache misses their beginning"
)
