"""Longest earlier matches, against a plain search through everything."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.workers.drafting.suffix_index import LEAST, LONGEST, Match, SuffixIndex


def _equal(tokens: list[int], place: int) -> int:
    length = 0
    while length < min(LONGEST, place) and tokens[place - 1 - length] == tokens[-1 - length]:
        length += 1
    return length


def _searched(tokens: list[int]) -> int:
    """The longest match by looking at every place; 0 if it is too short."""
    longest = max((_equal(tokens, place) for place in range(1, len(tokens))), default=0)
    return longest if longest >= LEAST else 0


def test_the_longest_match_is_found_and_not_the_latest() -> None:
    tokens = [1, 2, 3, 4, 9, 9, 3, 4, 8, 1, 2, 3, 4]

    assert SuffixIndex().longest(tokens) == Match(4, 4)


def test_of_equal_matches_the_latest_is_taken() -> None:
    assert SuffixIndex().longest([1, 2, 7, 1, 2, 8, 1, 2]) == Match(2, 5)


@pytest.mark.parametrize("tokens", [[], [1], [1, 1], [1, 2, 3, 4], [1, 2, 3, 2, 1]])
def test_what_never_occurred_before_has_no_match(tokens: list[int]) -> None:
    assert SuffixIndex().longest(tokens) is None


@given(st.lists(st.integers(0, 3), min_size=0, max_size=11), st.integers(1, 4))
def test_growing_by_any_steps_finds_what_a_search_finds(tokens: list[int], step: int) -> None:
    """So short that no chain is cut."""
    index = SuffixIndex()

    for end in range(0, len(tokens) + 1, step):
        match = index.longest(tokens[:end])
        assert (match.length if match else 0) == _searched(tokens[:end])
        assert match is None or match.length == _equal(tokens[:end], match.following)


def test_a_long_match_is_kept_where_newer_short_ones_would_hide_it() -> None:
    """Chains are walked a few places back only; a match found once is carried on with."""
    random = Random(1)
    text = [random.randrange(1000) for _ in range(40)]
    noise = [token for _ in range(20) for token in (*text[18:20], random.randrange(1000, 2000))]
    tokens = text[:30] + noise + text[:12]
    index = SuffixIndex()
    assert index.longest(tokens) == Match(12, 12)
    for end in range(13, 28):
        tokens.append(text[end - 1])
        assert index.longest(tokens) == Match(min(end, LONGEST), end)


def test_indexing_ahead_changes_no_answer() -> None:
    random = Random(2)
    tokens = [random.randrange(4) for _ in range(200)]
    ahead, lazy = SuffixIndex(), SuffixIndex()
    for end in range(0, 200, 50):
        ahead.extend(tokens, end)

    assert ahead.longest(tokens) == lazy.longest(tokens)
    assert len(ahead) == len(lazy) == 200
