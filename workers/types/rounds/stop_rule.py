"""Early stopping: when drafting for a sequence ends before its depth, since another draft is not worth its time.

The depth policy sets the rule's numbers, which are sent with the round, so that all ranks stop at the same draft. The
compiled kernels implement the same rule (kernels/cpu/src/draft.h).
"""

import math
from typing import NamedTuple

MAX_LEAD = 12.0  # leads are clipped to this: on scout all drafts beyond it were accepted
MAX_LOG_ODDS = 30.0  # log-odds are clipped to this


class StopRule(NamedTuple):
    """The rule of one sequence. A draft's *lead* is its score minus the next best.

    The log-odds that a draft is accepted, if those before it are, are fixed + lead * its lead + bend * log(1 + its
    lead), plus `first` for the first draft.
    """

    fixed: float
    lead: float
    bend: float
    first: float
    further: float  # probability that a draft not made yet is accepted if those before it are
    each: float  # price of a draft in tokens
    step: float  # price of a step in tokens, shared by all sequences

    def chance(self, lead: float, *, first: bool) -> float:
        """Probability that a draft is accepted if those before it are."""
        capped = min(lead, MAX_LEAD)
        against = -self.fixed - self.lead * capped - self.bend * math.log1p(capped) - first * self.first
        return 1.0 / (1.0 + math.exp(min(against, MAX_LOG_ODDS)))


NEVER_STOP = StopRule(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
