"""Rounds that speculation has no part in: what they take, and when to measure them again. Reads no clock.

All gain and loss is told against them, so they are measured and not modelled: in bursts, and as long as speculation is
stopped. A model of them would follow what drafted rounds teach it, and flatter itself. Between bursts they are taken to
get slower and faster as all rounds do, which is told by what was known at the last burst.
"""

from collections.abc import Sequence
from statistics import fmean, median
from typing import NamedTuple

from outrider.workers.speculation.known_times import KnownTimes, Shape

CALM = 3  # the first rounds without drafts are slower than those that follow
BURST = 6  # rounds after these that are measured together
_FEWEST = 4
_CONFIRMED = 0.1  # of what was believed for the mood's sake: a burst as near as that counts alone
_MOST_MOOD = 1.2  # times: what is believed of it without a burst, since a base that is too long flatters drafts
_DOUBT = 12.0  # rounds that a burst must have to count as much as all those before it
_CLIP = 1.5  # a round counts as at most this many times the burst's median
_FIRST = 48.0  # rounds between bursts at least, as between the first two; then twice as many, and so on
_LEAST, _MOST = 160.0, 1500.0  # rounds between bursts once they are known
_SHORT, _LONGER = 256.0, 1.5  # tokens of context that matter little; times as many, of which a burst is due soon
_SOON = 5.0  # times as soon as else, where anything has changed
_MOODY = 0.15  # a change of mood, in proportion, after which a burst is due soon
_RECENT, _REFERENCE = 0.05, 16  # weight of a round in the machine's mood; rounds after a burst that tell the mood then
_SURE = 6000.0  # rounds, times the square of what drafts gain: the more that is, the less a doubt matters


class Plain(NamedTuple):
    """A round without drafts."""

    sequences: int
    context: float  # tokens, summed over the sequences


class BaseRounds:
    """Of one size of rounds."""

    def __init__(self) -> None:
        self._seconds = 0.0  # of a round like `like`, when it was measured; 0: not known
        self.like = Plain(1, 0.0)
        self._measured_at, self._bursts = 0, 0
        self._then: KnownTimes | None = None  # what was known when it was measured,
        self._known_rows: frozenset[int] = frozenset()  # and of which numbers of rows much was
        self._compared, self._mood, self._mood_then = 0, 1.0, 1.0  # rounds since, over what they would have taken then

    @property
    def known(self) -> bool:
        return self._seconds > 0.0

    @property
    def seconds(self) -> float:
        """Of a round like `like`, at present."""
        return self._seconds * min(max(self._mood / self._mood_then, 1.0 / _MOST_MOOD), _MOST_MOOD)

    def compare(self, shape: Shape, round_s: float) -> None:
        """Tells the machine's mood by a round of about that size, with drafts or without: what it took to its verdict.

        What was hardly known at the burst tells nothing of a mood since, nor does what making drafts takes.
        """
        if self._then is None or shape.rows not in self._known_rows:
            return
        ratio = round_s / self._then.verify(shape)
        if self._compared:
            ratio = min(max(ratio, self._mood / _CLIP), self._mood * _CLIP)
        self._compared += 1
        self._mood += max(1.0 / self._compared, _RECENT) * (ratio - self._mood)
        if self._compared <= _REFERENCE:
            self._mood_then = self._mood

    def measured(
        self,
        now: int,
        like: Plain,
        rounds_s: Sequence[float],
        known: KnownTimes,
        known_rows: frozenset[int],
    ) -> None:
        """A burst of rounds about `like` this, the last of them the `now`th of all rounds. Too few say nothing.

        `known`: all that is known of times, well of the numbers of rows `known_rows`.
        """
        if len(rounds_s) < _FEWEST:
            return
        most = _CLIP * median(rounds_s)
        took = fmean([min(seconds, most) for seconds in rounds_s])
        if self.known:
            alone = abs(took / self.seconds - 1.0) < _CONFIRMED or self._other(like.context / like.sequences)
            doubt = 0.0 if alone else _DOUBT
            news = max(1.0 / (self._bursts + 1), len(rounds_s) / (len(rounds_s) + doubt))
            took = self._seconds + news * (took - self._seconds)
        self._seconds, self.like, self._measured_at = took, like, now
        self._bursts, self._then, self._known_rows = self._bursts + 1, known, known_rows
        self._compared, self._mood, self._mood_then = 0, 1.0, 1.0

    def due(self, now: int, gain: float, context: float) -> bool:
        """Whether it is time for a burst, where drafts make rounds `gain` times as fast.

        `context`: tokens of a sequence at present.
        """
        if not self.known:
            return True
        sure = min(max(_SURE * (gain - 1.0) ** 2, _LEAST), _MOST)
        changed = abs(self._mood / self._mood_then - 1.0) > _MOODY or self._other(context)
        gap = max(sure / _SOON, _FIRST) if changed else min(_FIRST * 2.0 ** min(self._bursts - 1, 9), sure)
        return now - self._measured_at >= gap

    def _other(self, context: float) -> bool:
        """Whether sequences of so many tokens are others than those that were measured."""
        usual = max(self.like.context / self.like.sequences, _SHORT)
        return not 1.0 / _LONGER < max(context, _SHORT) / usual < _LONGER
