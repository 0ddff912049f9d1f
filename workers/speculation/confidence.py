"""How likely a draft is accepted, by its drafter's confidence: logistic in the lead of its score, learned online.

Under coupled sampling a draft stands if the target's best score is the same token's. So what counts is how far the
drafter's best is ahead of its next best, noise included, and not how probable the token was. Knows nothing of time.
"""

import math
from collections.abc import Iterator, Sequence

_MOST = 8.0  # a lead beyond it says no more
_STEP = 0.02
_GREEDY, _DRAWN = (-0.4, 2.4), (-0.6, 1.4)  # intercept and slope at first: scout's own


class Confidence:
    """Greedy drafts and drawn ones have scores of different scales, and are learned apart."""

    def __init__(self) -> None:
        self._weights = {True: _GREEDY, False: _DRAWN}

    def probability(self, greedy: bool, lead: float) -> float:
        """That the target agrees with a draft, if it agreed with those before it."""
        intercept, slope = self._weights[greedy]
        return 1.0 / (1.0 + math.exp(-(intercept + slope * min(lead, _MOST))))

    def survivals(self, greedy: bool, leads: Sequence[float]) -> Iterator[float]:
        """For each draft, that it and all before it are accepted."""
        survival = 1.0
        for lead in leads:
            survival *= self.probability(greedy, lead)
            yield survival

    def observe(self, greedy: bool, leads: Sequence[float], accepted: int) -> None:
        """Learns from drafts that were judged: the first `accepted` of them stood, one after those did not."""
        for position, lead in enumerate(leads[: accepted + 1]):
            error = (position < accepted) - self.probability(greedy, lead)
            intercept, slope = self._weights[greedy]
            self._weights[greedy] = intercept + _STEP * error, max(slope + _STEP * error * min(lead, _MOST), 0.0)
