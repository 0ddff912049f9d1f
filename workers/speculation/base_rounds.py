"""Rounds that speculation has no part in: what they take, and when to measure them again. Reads no clock.

All gain and loss is told against them, so they are measured and not modelled: in bursts, and as long as speculation is
stopped. A model of them would follow what drafted rounds teach it, and flatter itself. A machine has moods that outlast
a burst: what is kept is how a burst compares with the rounds around it, of which the model knows what they take.
"""

from collections.abc import Sequence
from statistics import fmean, median
from typing import NamedTuple

CALM = 3  # the first rounds without drafts are slower than those that follow: so many of short ones
FEWEST, BURST = 4, 8  # rounds after these that are measured together
_AROUND = 16  # rounds after a burst whose speed tells the machine's mood then, as the one before does
_DOUBT = 12.0  # rounds of a burst that would count as much as all those before it
_CLIP = 1.5  # a round counts as at most this many times the burst's median
_FIRST = 16.0  # rounds between bursts at least, as between the first two; then twice as many, and so on
_LEAST, _MOST = 160.0, 1500.0  # rounds between bursts once they are known
_SHORT, _LONGER = 256.0, 1.5  # tokens of context that matter little; times as many, of which a burst is due soon
_SOON = 5.0  # times as soon as else, where sequences are others
_SURE = 6000.0  # rounds, times the square of what drafts gain: the more that is, the less a doubt matters


class Plain(NamedTuple):
    """A round without drafts."""

    sequences: int
    context: float  # tokens, summed over the sequences


class BaseRounds:
    """Of one size of rounds. Relative seconds are the cost model's: what a round takes over the machine's speed."""

    def __init__(self) -> None:
        self.like = Plain(1, 0.0)
        self._before = 0.0  # relative seconds that were believed until the last burst
        self._took_s, self._news = 0.0, 1.0  # what that took; its share of belief
        self._speed, self._speeds = 1.0, list[float]()  # the machine's at that burst; since then, a while
        self._measured_at, self._bursts = 0, 0

    @property
    def known(self) -> bool:
        return self._took_s > 0.0

    @property
    def relative(self) -> float:
        """Relative seconds of a round like `like`."""
        return self._before + self._news * (self._took_s / self._speed - self._before)

    def compare(self, speed: float) -> None:
        """A round of about that size was run, at this speed of the machine."""
        if len(self._speeds) < _AROUND:
            self._speeds.append(speed)
            if len(self._speeds) == _AROUND:
                self._speed = 0.5 * (self._speed + fmean(self._speeds))

    def measured(self, now: int, like: Plain, rounds_s: Sequence[float], speed: float) -> None:
        """A burst of rounds about `like` this, the last of them the `now`th of all rounds. Too few say nothing.

        `speed`: the machine's just before.
        """
        if len(rounds_s) < FEWEST:
            return
        most = _CLIP * median(rounds_s)
        if self.known:
            self._before = self.relative
            doubt = 0.0 if self._other(like.context / like.sequences) else _DOUBT
            self._news = max(1.0 / (self._bursts + 1), BURST / (BURST + doubt))
        self._took_s = fmean([min(seconds, most) for seconds in rounds_s])
        self._speed, self._speeds = speed, []
        self.like, self._measured_at, self._bursts = like, now, self._bursts + 1

    def like_those_of(self, context: float) -> bool:
        """Whether it is known what rounds of sequences of so many tokens take."""
        return self.known and not self._other(context)

    def doubt(self, now: int) -> None:
        """Only rounds without drafts were run for long, which tell the machine's speed and nothing of its rounds."""
        self._measured_at, self._bursts = now, 1

    def due(self, now: int, gain: float, context: float) -> bool:
        """Whether it is time for a burst, where drafts make rounds `gain` times as fast.

        `context`: tokens of a sequence at present.
        """
        if not self.known:
            return True
        sure = min(max(_SURE * (gain - 1.0) ** 2, _LEAST), _MOST)
        gap = max(sure / _SOON, _FIRST) if self._other(context) else min(_FIRST * 2.0 ** min(self._bursts - 1, 9), sure)
        return now - self._measured_at >= gap

    def _other(self, context: float) -> bool:
        """Whether sequences of so many tokens are others than those that were measured."""
        usual = max(self.like.context / self.like.sequences, _SHORT)
        return not 1.0 / _LONGER < max(context, _SHORT) / usual < _LONGER
