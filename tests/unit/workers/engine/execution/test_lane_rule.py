"""Rounds with enough rows go as two lanes, nearly equal and of whole sequences where that can be."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.workers.engine.execution.lane_rule import LaneRule, cut_of, rows_by_group
from outrider.workers.parallel.collectives.overlap import Overlap
from outrider.workers.types.rounds.round import Round, ints, offsets

TENSOR, STAGE = Overlap(tensor=True), Overlap(stage=True)


def round_of(lengths: list[int], owners: list[int] | None = None) -> Round:
    return Round(
        query_offsets=offsets(lengths), token_ids=ints([0] * sum(lengths)), owners=ints(owners if owners else ())
    )


@pytest.mark.parametrize(
    ("lengths", "owners", "overlap", "wanted"),
    [
        ([3, 4], None, TENSOR, False),
        ([4, 4], None, TENSOR, True),
        ([8], None, TENSOR, True),
        ([4, 4], [0, 1], STAGE, False),  # neither group has enough
        ([8], [1], STAGE, True),  # the idle group joins with empty lanes
        ([8], [1], TENSOR, False),  # it would not hand over within its tensor group
        ([8, 1], [1, 0], TENSOR, False),
        ([8, 2], [1, 0], TENSOR, True),
        ([], None, STAGE, False),
    ],
)
def test_which_rounds_go_as_two_lanes(
    lengths: list[int], owners: list[int] | None, overlap: Overlap, wanted: bool
) -> None:
    groups = 2 if owners else 1

    assert LaneRule.of(overlap, least_rows=8).two(round_of(lengths, owners), groups) is wanted


def test_rows_are_counted_by_data_group() -> None:
    assert rows_by_group(round_of([3, 4, 5], [2, 0, 2]), 3).tolist() == [4, 0, 8]
    assert rows_by_group(round_of([3, 4]), 1).tolist() == [7]


@pytest.mark.parametrize(
    ("lengths", "wanted"),
    [
        ([4, 4], 4),
        ([3, 5, 1], 4 + 1),  # whole sequences would be 3 and 6
        ([4, 5, 1], 4),
        ([20], 10),
        ([1], 1),
        ([], 0),
        ([1, 30], 16),
    ],
)
def test_lanes_have_whole_sequences_unless_they_would_be_too_unequal(lengths: list[int], wanted: int) -> None:
    assert cut_of(offsets(lengths)) == wanted


@given(st.lists(st.integers(1, 40), max_size=12))
def test_neither_lane_is_much_the_larger(lengths: list[int]) -> None:
    rows, cut = sum(lengths), cut_of(np.array(offsets(lengths)))

    assert max(cut, rows - cut) <= max(0.6 * rows, (rows + 1) // 2)
