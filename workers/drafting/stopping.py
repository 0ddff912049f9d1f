"""Early stopping: applies the sequences' stop rules after each draft step (types/rounds/stop_rule.py).

All sequences share the price of a step. Another step is made while their expected gains, after each sequence's own
price, add up to the step's price. The compiled kernels do the same (kernels/cpu/src/draft.h).
"""

import math
from collections.abc import Sequence

import numpy as np

from outrider.workers.types.rounds.round import FloatArray, IntArray
from outrider.workers.types.rounds.stop_rule import NEVER_STOP, StopRule


class StopTracker:
    """Decides after each step which of the sequences that draft together continue."""

    def __init__(self, rules: Sequence[Sequence[float]] | FloatArray | None, depths: Sequence[int]) -> None:
        """`rules` [sequences, 7]; None: no early stopping. `depths` [sequences]: most drafts of each."""
        rows = [NEVER_STOP] * len(depths) if rules is None else [StopRule(*row) for row in np.asarray(rules).tolist()]
        self._rules, self._depths = rows, depths
        self._reach, self._drafts = [1.0] * len(depths), 0

    def ended(self, live: IntArray, leads: Sequence[float]) -> list[bool]:
        """Whether each of the `live` sequences stops after its newest draft, given the drafts' leads."""
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
    """How many drafts each sequence makes if their leads are these and all sequences share the steps."""
    depths = [len(own) for own in leads]
    tracker, live, step = StopTracker(rules, depths), np.flatnonzero(depths), 0
    made = [0] * len(leads)
    while len(live):
        over = tracker.ended(live, [leads[n][step] for n in live.tolist()])
        step += 1
        for n in live.tolist():
            made[n] = step
        live = np.array([n for n, ends in zip(live.tolist(), over, strict=True) if not ends and depths[n] > step], int)
    return made
