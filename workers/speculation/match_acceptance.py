"""How likely a looked-up draft is accepted, by how much of what precedes it matched. Pure; learned online.

A draft that stands makes the match one longer for the draft after it, so one table serves every depth. It may be
filled from any round, whoever drafted in it: the text does not depend on the drafts.
"""

from bisect import bisect_right
from collections.abc import Sequence

_FROM = (0, 3, 4, 6, 9, 14, 20, 32)  # matches of at least so many tokens share a rate
_FIRST = (0.35, 0.5, 0.6, 0.7, 0.8, 0.87, 0.92, 0.95)  # of greedy text, before anything was seen
_DRAWN = 0.85  # of these, where text is drawn
_CEILING, _FLOOR = 0.99, 0.01
_MEMORY, _PRIOR_WEIGHT = 300.0, 6.0  # drafts
_OWN_MEMORY, _OWN_WEIGHT = 40.0, 6.0


class MatchAcceptance:
    """Rates of the whole engine. Greedy text repeats itself more, and is counted apart."""

    def __init__(self) -> None:
        self._tried = {greedy: [_PRIOR_WEIGHT] * len(_FROM) for greedy in (True, False)}
        self._stood = {
            greedy: [_PRIOR_WEIGHT * rate * (1.0 if greedy else _DRAWN) for rate in _FIRST] for greedy in (True, False)
        }

    def rate(self, greedy: bool, length: int) -> float:
        """That a draft behind a match of `length` tokens stands."""
        kind = bisect_right(_FROM, length) - 1
        return self._stood[greedy][kind] / self._tried[greedy][kind]

    def observe(self, greedy: bool, length: int, stood: bool) -> None:
        kind, keep = bisect_right(_FROM, length) - 1, 1.0 - 1.0 / _MEMORY
        self._tried[greedy][kind] = self._tried[greedy][kind] * keep + 1.0
        self._stood[greedy][kind] = self._stood[greedy][kind] * keep + stood


class OwnAcceptance:
    """How one sequence differs from the engine's rates: by one factor, what stood over what was expected to."""

    def __init__(self, engine: MatchAcceptance, greedy: bool) -> None:
        self._engine, self._greedy = engine, greedy
        self._stood = self._expected = _OWN_WEIGHT

    def rates(self, length: int, drafts: int) -> list[float]:
        """For each of `drafts` drafts behind a match of `length`, that it stands if those before it do."""
        factor = self._stood / self._expected
        return [
            min(max(self._engine.rate(self._greedy, length + place) * factor, _FLOOR), _CEILING)
            for place in range(drafts)
        ]

    def observe(self, length: int, drafts: Sequence[int], said: Sequence[int]) -> None:
        """Learns what became of `drafts` behind a match of `length`: the target `said` these tokens in their place."""
        keep = 1.0 - 1.0 / _OWN_MEMORY
        for place, (draft, token) in enumerate(zip(drafts, said, strict=False)):
            expected, stood = self._engine.rate(self._greedy, length + place), draft == token
            self._engine.observe(self._greedy, length + place, stood)
            self._stood = self._stood * keep + _OWN_WEIGHT * (1.0 - keep) + stood
            self._expected = self._expected * keep + _OWN_WEIGHT * (1.0 - keep) + expected
            if not stood:
                return
