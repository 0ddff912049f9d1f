"""Applies sequences' stop rules while their drafts are made, step by step (types/stop_rule.py).

A step is paid once, however many sequences draft in it: it is made while what each of them should bring above its own
price adds up to that. Compiled kernels do the same (kernels/cpu/src/draft.h).
"""

import math
from collections.abc import Sequence

import numpy as np

from outrider.workers.types.round import FloatArray, IntArray
from outrider.workers.types.stop_rule import NEVER_STOP, StopRule


class Drafted:
    """How likely the drafts so far of some sequences stand, which go step by step together."""

    def __init__(self, rules: Sequence[Sequence[float]] | FloatArray | None, depths: Sequence[int]) -> None:
        """`rules` [sequences, 7]; None: none ends early. `depths` [sequences]: how many each has at most."""
        rows = [NEVER_STOP] * len(depths) if rules is None else [StopRule(*row) for row in np.asarray(rules).tolist()]
        self._rules, self._depths = rows, depths
        self._reach, self._drafts = [1.0] * len(depths), 0

    def over(self, live: IntArray, leads: Sequence[float]) -> list[bool]:
        """For whom of the `live` no further draft is to be made, after one with these leads."""
        self._drafts += 1
        over, brings, least = list[bool](), 0.0, math.inf
        for n, lead in zip(live.tolist(), leads, strict=True):
            rules = self._rules[n]
            self._reach[n] *= rules.chance(lead, first=self._drafts == 1)
            own = self._reach[n] * rules.further - rules.each
            over.append(own < 0.0)
            if own >= 0.0 and self._depths[n] > self._drafts:
                brings, least = brings + own, min(least, rules.step)
        return over if brings >= least else [True] * len(over)


def made_together(rules: Sequence[StopRule], leads: Sequence[Sequence[float]]) -> list[int]:
    """How many of the drafts that have these leads are made, of each sequence that drafts in the same steps."""
    depths = [len(own) for own in leads]
    drafted, live, step = Drafted(rules, depths), np.flatnonzero(depths), 0
    made = [0] * len(leads)
    while len(live):
        over = drafted.over(live, [leads[n][step] for n in live.tolist()])
        step += 1
        for n in live.tolist():
            made[n] = step
        live = np.array([n for n, ends in zip(live.tolist(), over, strict=True) if not ends and depths[n] > step], int)
    return made
