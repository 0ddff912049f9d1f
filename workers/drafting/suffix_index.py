"""Finds where the end of a sequence occurred before in it: chains of equal n-grams, as LZ77 compressors keep them.

Pure Python, and grows with the sequence: a token costs one look in a table, a question a walk along one short chain.
"""

from collections.abc import Sequence
from typing import NamedTuple

LEAST = 2  # tokens that must be equal: the n of the n-grams
LONGEST = 32  # a match beyond it says no more
_MOST_CANDIDATES = 12  # places that are compared, the latest first


class Match(NamedTuple):
    """An earlier place that reads as the sequence's end does."""

    length: int  # tokens that are equal, at least LEAST; LONGEST stands for more
    following: int  # position of the token after that place


class SuffixIndex:
    """Of one sequence, whose tokens are given to every call: they only ever grow."""

    def __init__(self) -> None:
        self._latest: dict[int, int] = {}  # n-gram -> position after its latest place
        self._before: list[int] = [0] * LEAST  # position -> position after the n-gram's place before; 0: none
        self._last = Match(0, 0)
        self._asked_at = 0

    def __len__(self) -> int:
        """Positions that are indexed: matches follow one of them."""
        return len(self._before)

    def extend(self, tokens: Sequence[int], end: int) -> None:
        """Indexes the places before position `end`. What follows a place must be known, so the last token has none."""
        latest, before = self._latest, self._before
        for position in range(len(before), min(end, len(tokens))):
            gram = tokens[position - 2] << 32 | tokens[position - 1]
            before.append(latest.get(gram, 0))
            latest[gram] = position

    def longest(self, tokens: Sequence[int]) -> Match | None:
        """The earlier place with the longest match of the sequence's end; None if none.

        Of equal ones the one found last time, if it goes on, else the latest.
        """
        end = len(tokens)
        self.extend(tokens, end)
        if end < LEAST:
            return None
        best = self._carried_on(tokens, end)
        place = self._latest.get(tokens[end - 2] << 32 | tokens[end - 1], 0)
        for _ in range(_MOST_CANDIDATES):
            if not place or best.length >= LONGEST:
                break
            # Only a place that is equal one token further back can be better.
            if place > best.length and tokens[place - 1 - best.length] == tokens[end - 1 - best.length]:
                length = _equal(tokens, place, end)
                if length > best.length:
                    best = Match(length, place)
            place = self._before[place]
        self._last, self._asked_at = best, end
        return best if best.length >= LEAST else None

    def _carried_on(self, tokens: Sequence[int], end: int) -> Match:
        """The match found last, if what came since reads the same there: chains are cut short, this is not."""
        place = self._last.following + end - self._asked_at
        if not self._last.length or place >= end:
            return Match(0, 0)
        return Match(_equal(tokens, place, end), place)


def _equal(tokens: Sequence[int], place: int, end: int) -> int:
    """How many tokens before `place` and before `end` are the same, at most LONGEST."""
    most = min(LONGEST, place)
    length = 0
    while length < most and tokens[place - 1 - length] == tokens[end - 1 - length]:
        length += 1
    return length
