"""Finds earlier occurrences of a sequence's end: a hash table with chains of equal n-grams, as in LZ77 compressors.

Pure Python. Adding a token takes one table lookup; a search walks one short chain.
"""

from collections.abc import Sequence
from typing import NamedTuple

LEAST = 2  # tokens that must be equal: the n of the n-grams
LONGEST = 32  # longer matches are not distinguished
_MOST_CANDIDATES = 12  # places to compare, latest first


class Match(NamedTuple):
    """An earlier place whose tokens equal the sequence's end."""

    length: int  # number of equal tokens, LEAST .. LONGEST
    following: int  # position of the token after that place


class SuffixIndex:
    """The index of one sequence. Each call gets the sequence's tokens, which must only grow."""

    def __init__(self) -> None:
        self._latest: dict[int, int] = {}  # n-gram -> position after its latest place
        self._before: list[int] = [0] * LEAST  # position -> position after the n-gram's place before; 0: none
        self._last = Match(0, 0)
        self._asked_at = 0

    def __len__(self) -> int:
        """Number of indexed positions."""
        return len(self._before)

    def extend(self, tokens: Sequence[int], end: int) -> None:
        """Indexes the places before position `end`; not the last token, since nothing follows it yet."""
        latest, before = self._latest, self._before
        for position in range(len(before), min(end, len(tokens))):
            gram = tokens[position - 2] << 32 | tokens[position - 1]
            before.append(latest.get(gram, 0))
            latest[gram] = position

    def longest(self, tokens: Sequence[int]) -> Match | None:
        """The earlier place with the longest match of the sequence's end; None if there is none.

        Among equally long matches it prefers the continuation of the last one found, then the latest.
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
            # Only a place that matches one more token back can be longer.
            if place > best.length and tokens[place - 1 - best.length] == tokens[end - 1 - best.length]:
                length = _equal(tokens, place, end)
                if length > best.length:
                    best = Match(length, place)
            place = self._before[place]
        self._last, self._asked_at = best, end
        return best if best.length >= LEAST else None

    def _carried_on(self, tokens: Sequence[int], end: int) -> Match:
        """The last match, if the tokens added since then continue it. It may be too old for the candidates' limit."""
        place = self._last.following + end - self._asked_at
        if not self._last.length or place >= end:
            return Match(0, 0)
        return Match(_equal(tokens, place, end), place)


def _equal(tokens: Sequence[int], place: int, end: int) -> int:
    """Number of equal tokens before `place` and before `end`, at most LONGEST."""
    most = min(LONGEST, place)
    length = 0
    while length < most and tokens[place - 1 - length] == tokens[end - 1 - length]:
        length += 1
    return length
