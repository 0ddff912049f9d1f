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
_DOUBT = 12.0  # rounds that a burst must have to count as much as all those before it
_CLIP = 1.5  # a round counts as at most this many times the burst's median
_FIRST = 48.0  # rounds between bursts at least, as between the first two; then twice as many, and so on
_LEAST, _MOST = 160.0, 1500.0  # rounds between bursts once they are known
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
        self._then: KnownTimes | None = None  # what was known when it was measured
        self._compared, self._mood, self._mood_then = 0, 1.0, 1.0  # rounds since, over what they would have taken then

    @property
    def known(self) -> bool:
        return self._seconds > 0.0

    @property
    def seconds(self) -> float:
        """Of a round like `like`, at present."""
        return self._seconds * self._mood / self._mood_then

    def compare(self, shape: Shape, round_s: float) -> None:
        """Tells the machine's mood by a round of about that size, with drafts or without: what it took to its verdict.

        What making drafts takes is not asked: that it became dear is no mood of the machine's.
        """
        if self._then is None or len(self._then.by_rows) <= shape.rows:
            return
        ratio = round_s / self._then.verify(shape)
        if self._compared:
            ratio = min(max(ratio, self._mood / _CLIP), self._mood * _CLIP)
        self._compared += 1
        self._mood += max(1.0 / self._compared, _RECENT) * (ratio - self._mood)
        if self._compared <= _REFERENCE:
            self._mood_then = self._mood

    def measured(
        self, now: int, like: Plain, rounds_s: Sequence[float], known: KnownTimes, longer: float = 1.0
    ) -> None:
        """A burst of rounds about `like` this, the last of them the `now`th of all rounds. Too few say nothing.

        `known`: all that is known of times. `longer`: how much longer such rounds take than those that were measured
        before.
        """
        if len(rounds_s) < _FEWEST:
            return
        most = _CLIP * median(rounds_s)
        took = fmean([min(seconds, most) for seconds in rounds_s])
        if self.known:
            before = self.seconds * longer
            news = max(1.0 / (self._bursts + 1), len(rounds_s) / (len(rounds_s) + _DOUBT))
            took = before + news * (took - before)
        self._seconds, self.like, self._measured_at = took, like, now
        self._bursts, self._then = self._bursts + 1, known
        self._compared, self._mood, self._mood_then = 0, 1.0, 1.0

    def due(self, now: int, gain: float) -> bool:
        """Whether it is time for a burst, where drafts make rounds `gain` times as fast."""
        if not self.known:
            return True
        sure = min(max(_SURE * (gain - 1.0) ** 2, _LEAST), _MOST)
        moody = abs(self._mood / self._mood_then - 1.0) > _MOODY
        gap = _FIRST if moody else min(_FIRST * 2.0 ** min(self._bursts - 1, 9), sure)
        return now - self._measured_at >= gap
