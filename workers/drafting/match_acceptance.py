"""Estimates the acceptance of looked-up drafts from the length of the match before them. Pure; learned online.

An accepted draft makes the next draft's match one token longer, so one table serves all depths. It learns from every
round, also when a model drafted, since the text does not depend on the drafts.
"""

from bisect import bisect_right
from collections.abc import Sequence

from outrider.workers.drafting.suffix_index import LONGEST
from outrider.workers.types.requests.sampling_params import MAX_DRAFT_TOKENS

_FROM = (0, 3, 4, 6, 9, 14, 20, 32)  # smallest match length of each class that shares a rate
_FIRST = (0.35, 0.5, 0.6, 0.7, 0.8, 0.87, 0.92, 0.95)  # initial rates, for greedy text
_DRAWN = 0.85  # factor on the initial rates for sampled text
_KINDS = [bisect_right(_FROM, length) - 1 for length in range(LONGEST + MAX_DRAFT_TOKENS + 1)]  # by length of match
_CEILING, _FLOOR = 0.99, 0.01
_MEMORY, _PRIOR_WEIGHT = 300.0, 6.0  # drafts
_OWN_MEMORY, _OWN_WEIGHT = 40.0, 12.0


class MatchAcceptance:
    """The engine's acceptance rates, by length of the match before a draft."""

    def __init__(self, *, greedy: bool) -> None:
        """`greedy` text repeats itself more than sampled text, so each has its own rates."""
        self._rates = [rate * (1.0 if greedy else _DRAWN) for rate in _FIRST]
        self._tried = [_PRIOR_WEIGHT] * len(_FROM)

    def rates(self, length: int, drafts: int) -> list[float]:
        """Acceptance rate of each of `drafts` drafts after a match of `length` tokens, if those before are accepted."""
        known = self._rates
        return [known[kind] for kind in _KINDS[length : length + drafts]]

    def observe(self, length: int, accepted: bool) -> None:
        """Adds a judged draft."""
        kind = _KINDS[length]
        tried = self._tried[kind] = self._tried[kind] * (1.0 - 1.0 / _MEMORY) + 1.0
        self._rates[kind] += (accepted - self._rates[kind]) / tried


class SequenceAcceptance:
    """One sequence's rates: the engine's rates times one factor, accepted over expected drafts."""

    def __init__(self, engine: MatchAcceptance) -> None:
        self._engine = engine
        self._accepted = self._expected = _OWN_WEIGHT

    def rates(self, length: int, drafts: int) -> list[float]:
        """As MatchAcceptance.rates."""
        factor = self._accepted / self._expected
        return [min(max(rate * factor, _FLOOR), _CEILING) for rate in self._engine.rates(length, drafts)]

    def observe(self, length: int, drafts: Sequence[int], targets: Sequence[int]) -> None:
        """Learns from `drafts` after a match of `length`, given the tokens that the model emitted in their place."""
        keep, judged = 1.0 - 1.0 / _OWN_MEMORY, min(len(drafts), len(targets))
        pull = _OWN_WEIGHT * (1.0 - keep)
        for place, expected in enumerate(self._engine.rates(length, judged)):
            accepted = drafts[place] == targets[place]
            self._engine.observe(length + place, accepted)
            self._accepted = self._accepted * keep + pull + accepted
            self._expected = self._expected * keep + pull + expected
            if not accepted:
                return
