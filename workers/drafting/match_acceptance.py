"""How likely a looked-up draft is accepted, by how much of what precedes it matched. Pure; learned online.

A draft that stands makes the match one longer for the draft after it, so one table serves every depth. It may be
filled from any round, whoever drafted in it: the text does not depend on the drafts.
"""

from bisect import bisect_right
from collections.abc import Sequence

from outrider.workers.drafting.suffix_index import LONGEST
from outrider.workers.types.sampling_params import MAX_DRAFT_TOKENS

_FROM = (0, 3, 4, 6, 9, 14, 20, 32)  # matches of at least so many tokens share a rate
_FIRST = (0.35, 0.5, 0.6, 0.7, 0.8, 0.87, 0.92, 0.95)  # of greedy text, before anything was seen
_DRAWN = 0.85  # of these, where text is drawn
_KINDS = [bisect_right(_FROM, length) - 1 for length in range(LONGEST + MAX_DRAFT_TOKENS + 1)]  # by length of match
_CEILING, _FLOOR = 0.99, 0.01
_MEMORY, _PRIOR_WEIGHT = 300.0, 6.0  # drafts
_OWN_MEMORY, _OWN_WEIGHT = 40.0, 12.0


class MatchAcceptance:
    """Rates of the whole engine, for drafts behind a match of some length."""

    def __init__(self, *, greedy: bool) -> None:
        """`greedy` text repeats itself more than drawn text, and is counted apart."""
        self._rates = [rate * (1.0 if greedy else _DRAWN) for rate in _FIRST]
        self._tried = [_PRIOR_WEIGHT] * len(_FROM)

    def rates(self, length: int, drafts: int) -> list[float]:
        """For each of `drafts` drafts behind a match of `length` tokens, that it stands if those before it do."""
        known = self._rates
        return [known[kind] for kind in _KINDS[length : length + drafts]]

    def observe(self, length: int, stood: bool) -> None:
        """Of a draft that was to be judged."""
        kind = _KINDS[length]
        tried = self._tried[kind] = self._tried[kind] * (1.0 - 1.0 / _MEMORY) + 1.0
        self._rates[kind] += (stood - self._rates[kind]) / tried


class OwnAcceptance:
    """How one sequence differs from the engine's rates: by one factor, what stood over what was expected to."""

    def __init__(self, engine: MatchAcceptance) -> None:
        self._engine = engine
        self._stood = self._expected = _OWN_WEIGHT

    def rates(self, length: int, drafts: int) -> list[float]:
        """As the engine's."""
        factor = self._stood / self._expected
        return [min(max(rate * factor, _FLOOR), _CEILING) for rate in self._engine.rates(length, drafts)]

    def observe(self, length: int, drafts: Sequence[int], said: Sequence[int]) -> None:
        """Learns what became of `drafts` behind a match of `length`: the target `said` these tokens in their place."""
        keep, judged = 1.0 - 1.0 / _OWN_MEMORY, min(len(drafts), len(said))
        pull = _OWN_WEIGHT * (1.0 - keep)
        for place, expected in enumerate(self._engine.rates(length, judged)):
            stood = drafts[place] == said[place]
            self._engine.observe(length + place, stood)
            self._stood = self._stood * keep + pull + stood
            self._expected = self._expected * keep + pull + expected
            if not stood:
                return
