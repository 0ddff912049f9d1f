"""How much prompt lookup brings each sequence: enough, and models need not follow it. Pure."""

from typing import NamedTuple

_MEMORY = 6.0  # rounds: copied passages are that short
_CARRIES = 2.0  # looked-up tokens a round that should be accepted, from which on models add little (edits, scout)
_COMMON = 0.5  # the same of the mean sequence, from which on every sequence is searched in every round
_ALL_MEMORY = 200.0  # rounds of all sequences


class LookedUp(NamedTuple):
    """Of one sequence."""

    tokens: float  # a round, that should be accepted
    alone: bool  # no model may draft for it, so that it tells nothing of other sequences


class Lookups:
    """Of one replica."""

    def __init__(self) -> None:
        self._own: dict[int, LookedUp] = {}
        self._mean = 0.0

    def __len__(self) -> int:
        return len(self._own)

    @property
    def common(self) -> bool:
        """Whether text is looked up often."""
        return self._mean >= _COMMON

    def meet(self, sequence_id: int, *, alone: bool) -> None:
        """A new sequence, which is like the mean."""
        self._own[sequence_id] = LookedUp(self._mean, alone)

    def add(self, sequence_id: int, tokens: float) -> None:
        """In a round of the sequence `tokens` looked-up ones should be accepted."""
        own = self._own.get(sequence_id)
        if own is None or not (tokens or own.tokens):
            return
        own = own._replace(tokens=own.tokens + (tokens - own.tokens) / _MEMORY)
        self._own[sequence_id] = own if own.tokens > 0.01 else own._replace(tokens=0.0)
        if not own.alone:
            self._mean += (tokens - self._mean) / _ALL_MEMORY

    def alone(self, sequence_id: int) -> bool:
        """Whether no model may draft for it."""
        own = self._own.get(sequence_id)
        return own is not None and own.alone

    def carries(self, sequence_id: int) -> bool:
        """Whether looked-up drafts leave models little to add."""
        own = self._own.get(sequence_id)
        return own is not None and own.tokens >= _CARRIES

    def forget(self, sequence_id: int) -> None:
        self._own.pop(sequence_id, None)
