"""When drafting ends before its depth: once further drafts are too unlikely to stand to pay for their making.

The depth policy says it, in numbers that travel with the round: all ranks that draft stop at one place. A draft's
chance is the one that it is judged by later (acceptance.py). A step is paid once, however many sequences draft in it:
it is made while what each of them should bring above its own price adds up to that. Compiled kernels do the same
(kernels/cpu/src/draft.h).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from outrider.workers.types.round import PATIENCE, FloatArray, IntArray

MOST_LEAD = 12.0  # a lead beyond it says no more
HOPELESS = 30.0  # log-odds against a draft, beyond which none is told apart


class Patience(NamedTuple):
    """Of one sequence."""

    fixed: float  # log-odds of a draft that it stands if those before it do
    lead: float  # times how far its score leads over the next best
    bend: float  # times log(1 + that)
    first: float  # for the first draft
    further: float  # chance of another draft, before it is made, to stand if those before it do
    each: float  # tokens that it must bring
    step: float  # tokens that all drafts of a step must bring together above that

    def chance(self, lead: float, *, first: bool) -> float:
        """That a draft stands if those before it do."""
        capped = min(lead, MOST_LEAD)
        against = -self.fixed - self.lead * capped - self.bend * math.log1p(capped) - first * self.first
        return 1.0 / (1.0 + math.exp(min(against, HOPELESS)))


ENDLESS = Patience(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
assert len(ENDLESS) == PATIENCE


class Drafted:
    """How likely the drafts so far of some sequences stand, which go step by step together."""

    def __init__(self, patience: Sequence[Sequence[float]] | FloatArray | None, depths: Sequence[int]) -> None:
        """`patience` [sequences, 7]; None: nobody's ends. `depths` [sequences]: how many each has at most."""
        rows = (
            [ENDLESS] * len(depths) if patience is None else [Patience(*row) for row in np.asarray(patience).tolist()]
        )
        self._patience, self._depths = rows, depths
        self._reach, self._drafts = [1.0] * len(depths), 0

    def over(self, live: IntArray, leads: Sequence[float]) -> list[bool]:
        """For whom of the `live` no further draft is to be made, after one with these leads."""
        self._drafts += 1
        over, brings, least = list[bool](), 0.0, math.inf
        for n, lead in zip(live.tolist(), leads, strict=True):
            patience = self._patience[n]
            self._reach[n] *= patience.chance(lead, first=self._drafts == 1)
            own = self._reach[n] * patience.further - patience.each
            over.append(own < 0.0)
            if own >= 0.0 and self._depths[n] > self._drafts:
                brings, least = brings + own, min(least, patience.step)
        return over if brings >= least else [True] * len(over)


def made_together(patience: Sequence[Patience], leads: Sequence[Sequence[float]]) -> list[int]:
    """How many of the drafts that have these leads are made, of each sequence that drafts in the same steps."""
    depths = [len(own) for own in leads]
    drafted, live, step = Drafted(patience, depths), np.flatnonzero(depths), 0
    made = [0] * len(leads)
    while len(live):
        over = drafted.over(live, [leads[n][step] for n in live.tolist()])
        step += 1
        for n in live.tolist():
            made[n] = step
        live = np.array([n for n, ends in zip(live.tolist(), over, strict=True) if not ends and depths[n] > step], int)
    return made
