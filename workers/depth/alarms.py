"""Detects a broken drafter. Counts alarms, and reports each kind once with its likely cause. Pure.

Low acceptance alone is no alarm, since some text is hard to predict. But then confidence is low too. So acceptance is
compared with earlier drafts of the same confidence on this checkpoint: confident drafts should not fail more often.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from outrider.workers.depth.acceptance import DraftKind, MadeDrafts

COLLAPSE, DEAD_POSITION, STALE_CACHE, FAILURE = "acceptance_collapsed", "position_dead", "cache_stale", "drafter_failed"
ALARMS = (COLLAPSE, DEAD_POSITION, STALE_CACHE, FAILURE)

_WINDOW = 256  # judged drafts that are compared with earlier ones
_LEARNING = 4 * _WINDOW  # judged drafts before the first comparison
_BINS = 12  # of leads; the width is log(1.5) in log(1 + lead)
_SHORTFALL, _DEVIATIONS = 0.7, 6.0  # alarm below this share of the expected acceptance, and this many deviations
_DEAD_TRIES, _LIVE_BEFORE = _WINDOW // 4, 0.3  # drafts at a dead position; acceptance rate of the position before it
_STALE_SHARE = 0.5  # of the acceptance of equally confident drafts without a cache gap
_SURE = 3  # first bin of confident drafts: a lead of 2.4


@dataclass(slots=True)
class _Tally:
    tried: int = 0
    accepted: int = 0
    sure: int = 0  # confident ones among those tried

    def add(self, bin: int, accepted: bool) -> None:
        self.tried += 1
        self.accepted += accepted
        self.sure += bin >= _SURE

    @property
    def rate(self) -> float:
        return self.accepted / self.tried if self.tried else 0.0


class _Window(NamedTuple):
    """Expected and actual acceptance of the latest drafts."""

    expected: float
    variance: float
    accepted: int

    def low(self, share: float = _SHORTFALL) -> bool:
        """Whether acceptance is below this share of the expected one, by more than chance."""
        missing = self.expected - self.accepted
        return self.accepted < share * self.expected and missing > _DEVIATIONS * math.sqrt(self.variance + 1.0)


class _AlarmHistory:
    """Statistics of one kind of drafts."""

    def __init__(self) -> None:
        self.judged = self.waiting = 0
        self.bins = [_Tally() for _ in range(_BINS)]
        self.positions: list[_Tally] = []  # since the position's last check
        self.rates: list[float] = []  # acceptance rates by position at that check
        self._latest: list[tuple[Sequence[float], int]] = []  # unread leads, and how many of them were accepted

    def add(self, leads: Sequence[float], accepted: int) -> None:
        self._latest.append((leads, accepted))
        self.waiting += len(leads)

    def read(self) -> list[tuple[int, bool]]:
        """Bins of the unread drafts, and whether each was accepted."""
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
        """Compares the drafts' acceptance with what this history expects."""
        rates = [self.bins[bin].rate for bin, _ in labels]
        variance = sum(rate * (1.0 - rate) for rate in rates)
        return _Window(sum(rates), variance, sum(accepted for _, accepted in labels))

    def trust(self, labels: Sequence[tuple[int, bool]]) -> None:
        """Adds the drafts to the expectation: they show no fault."""
        for bin, accepted in labels:
            self.bins[bin].add(bin, accepted)


class Alarms:
    """Watches the acceptance of drafts. `counts` grows as long as a fault lasts."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(ALARMS, 0)
        self._reported: set[tuple[str, str, int]] = set()
        self._histories: dict[tuple[DraftKind, bool], _AlarmHistory] = {}

    def observe(self, made: MadeDrafts, judged: int, accepted: int, *, gap: bool = False) -> list[str]:
        """Adds a sequence's first `judged` drafts, of which `accepted` were accepted. Returns new alarms' messages.

        `gap`: the drafter has not followed the whole sequence.
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
        """Adds an error raised by the drafter. Returns the alarm's message if it is new."""
        return self._raise(FAILURE, drafter, 0, f"drafter {drafter} failed ({reason}): continuing without its drafts")

    def _weighed(
        self, kind: DraftKind, history: _AlarmHistory, labels: Sequence[tuple[int, bool]], gap: bool
    ) -> list[str]:
        whole = self._histories.get((kind, False))
        window, messages = history.weigh(labels), list[str]()
        low = history.judged > _LEARNING + _WINDOW and window.low()
        if low:
            text = _COLLAPSE.format(kind.drafter, window.accepted / window.expected)
            messages = self._raise(COLLAPSE, kind.drafter, kind.temperature_class, text)
        elif gap and whole is not None and whole.judged > _LEARNING and whole.weigh(labels).low(_STALE_SHARE):
            messages = self._raise(STALE_CACHE, kind.drafter, kind.temperature_class, _STALE.format(kind.drafter))
        if not low:
            history.trust(labels)
        return messages

    def _dead(self, kind: DraftKind, history: _AlarmHistory) -> list[str]:
        messages: list[str] = []
        for place, tally in enumerate(history.positions):
            if tally.tried < _DEAD_TRIES:
                continue
            lives = place == 0 or history.rates[place - 1] >= _LIVE_BEFORE
            if not tally.accepted and lives and 2 * tally.sure >= tally.tried:
                text = _DEAD.format(place + 1, kind.drafter) if place else _DEAD_FIRST.format(kind.drafter)
                messages += self._raise(DEAD_POSITION, kind.drafter, place, text)
            history.rates[place], history.positions[place] = tally.rate, _Tally()
        return messages

    def _raise(self, alarm: str, drafter: str, place: int, text: str) -> list[str]:
        self.counts[alarm] += 1
        if (alarm, drafter, place) in self._reported:
            return []
        self._reported.add((alarm, drafter, place))
        return [text]


_COLLAPSE = (
    "drafts of {} are accepted only {:.0%} as often as earlier drafts of the same confidence: does the drafter get the "
    "right hidden states, and does it sample as the model does?"
)
_DEAD_FIRST = (
    "draft 1 of {} is never accepted, although it is confident: does the drafter get the right hidden states, and does "
    "it sample as the model does?"
)
_DEAD = (
    "draft {} of {} is never accepted, but the draft before it is: does the recursion reuse the state after "
    "shared_head.norm, and does the cache hold the drafts' own entries?"
)
_STALE = (
    "drafts of {} for sequences that it did not follow from the start are accepted less than half as often as other "
    "drafts of the same confidence: its cache lacks the beginning of these sequences"
)
