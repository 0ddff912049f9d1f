"""When drafting ends before its depth: once the drafts so far are too unlikely to stand for another to pay its step.

The depth policy says it, in numbers that travel with the round: all ranks that draft stop at one place. A draft's
chance is the one that it is judged by later (acceptance.py). Compiled kernels do the same (kernels/cpu/src/draft.h).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from outrider.workers.engine.round import PATIENCE, FloatArray, IntArray

MOST_LEAD = 12.0  # a lead beyond it says no more
HOPELESS = 30.0  # log-odds against a draft, beyond which none is told apart


class Patience(NamedTuple):
    """Of one sequence."""

    fixed: float  # log-odds of a draft that it stands if those before it do
    lead: float  # times how far its score leads over the next best
    bend: float  # times log(1 + that)
    first: float  # for the first draft
    least: float  # chance that all so far stand, for another to be made

    def chance(self, lead: float, *, first: bool) -> float:
        """That a draft stands if those before it do."""
        capped = min(lead, MOST_LEAD)
        against = -self.fixed - self.lead * capped - self.bend * math.log1p(capped) - first * self.first
        return 1.0 / (1.0 + math.exp(min(against, HOPELESS)))

    def made(self, leads: Sequence[float]) -> int:
        """How many of the drafts that have these leads are made."""
        reach = 1.0
        for number, lead in enumerate(leads, 1):
            reach *= self.chance(lead, first=number == 1)
            if reach < self.least:
                return number
        return len(leads)


ENDLESS = Patience(0.0, 0.0, 0.0, 0.0, 0.0)
assert len(ENDLESS) == PATIENCE


class Drafted:
    """How likely the drafts so far of some sequences stand."""

    def __init__(self, patience: FloatArray | None, sequences: int) -> None:
        """`patience` [sequences, 5]; None: nobody's ends."""
        rows = [ENDLESS] * sequences if patience is None else [Patience(*row) for row in patience.tolist()]
        self._patience, self._reach, self._drafts = rows, [1.0] * sequences, 0

    def over(self, live: IntArray, leads: Sequence[float]) -> list[bool]:
        """For whom of the `live` no further draft is to be made, after one with these leads."""
        self._drafts += 1
        for n, lead in zip(live.tolist(), leads, strict=True):
            self._reach[n] *= self._patience[n].chance(lead, first=self._drafts == 1)
        return [self._reach[n] < self._patience[n].least for n in live.tolist()]
