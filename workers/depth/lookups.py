"""Estimates how many tokens prompt lookup brings each sequence: if enough, models need not follow it. Pure."""

from typing import NamedTuple

_MEMORY = 6.0  # rounds of one sequence: copied passages are short
_SUFFICES = 2.0  # expected accepted tokens per round above which models add little (edits, scout)
_COMMON = 0.5  # the same for the mean sequence, above which every sequence is searched in every round
_ALL_MEMORY = 200.0  # rounds of all sequences


class LookedUp(NamedTuple):
    """The estimate of one sequence."""

    tokens: float  # expected accepted tokens per round
    lookup_only: bool  # no model may draft for it; not counted in the mean


class Lookups:
    """The estimates of one replica."""

    def __init__(self) -> None:
        self._own: dict[int, LookedUp] = {}
        self._mean = 0.0

    def __len__(self) -> int:
        return len(self._own)

    @property
    def common(self) -> bool:
        """Whether lookup succeeds often in all sequences."""
        return self._mean >= _COMMON

    def add_sequence(self, sequence_id: int, *, lookup_only: bool) -> None:
        """Adds a sequence, starting at the mean."""
        self._own[sequence_id] = LookedUp(self._mean, lookup_only)

    def observe(self, sequence_id: int, tokens: float) -> None:
        """Adds a round in which `tokens` looked-up tokens are expected to be accepted."""
        own = self._own.get(sequence_id)
        if own is None or not (tokens or own.tokens):
            return
        own = own._replace(tokens=own.tokens + (tokens - own.tokens) / _MEMORY)
        self._own[sequence_id] = own if own.tokens > 0.01 else own._replace(tokens=0.0)
        if not own.lookup_only:
            self._mean += (tokens - self._mean) / _ALL_MEMORY

    def lookup_only(self, sequence_id: int) -> bool:
        """Whether no model may draft for the sequence."""
        own = self._own.get(sequence_id)
        return own is not None and own.lookup_only

    def suffices(self, sequence_id: int) -> bool:
        """Whether lookup brings so much that models add little."""
        own = self._own.get(sequence_id)
        return own is not None and own.tokens >= _SUFFICES

    def forget(self, sequence_id: int) -> None:
        self._own.pop(sequence_id, None)
