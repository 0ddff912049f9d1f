"""When drafting for a sequence ends before its depth: once another draft is too unlikely to pay for its making.

The depth policy sets the rule, in numbers that travel with the round, so that all ranks that draft stop at one place.
Compiled kernels follow the same rule (kernels/cpu/src/draft.h).
"""

import math
from typing import NamedTuple

MAX_LEAD = 12.0  # a lead beyond it says no more: on scout all such drafts were accepted
MAX_LOG_ODDS = 30.0  # beyond it exp() says no more


class StopRule(NamedTuple):
    """Of one sequence. A draft's *lead* is its score less the next best's."""

    fixed: float  # log-odds that a draft is accepted if those before it are: this
    lead: float  # and times its lead
    bend: float  # and times log(1 + lead)
    first: float  # and this for the first draft
    further: float  # chance of another draft, before it is made, to be accepted if those before it are
    each: float  # tokens that it must bring
    step: float  # tokens that all drafts of a step must bring together above that

    def chance(self, lead: float, *, first: bool) -> float:
        """That a draft is accepted if those before it are."""
        capped = min(lead, MAX_LEAD)
        against = -self.fixed - self.lead * capped - self.bend * math.log1p(capped) - first * self.first
        return 1.0 / (1.0 + math.exp(min(against, MAX_LOG_ODDS)))


NEVER_STOP = StopRule(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
