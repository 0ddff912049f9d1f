import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.cluster.planning.presets import load_shape
from outrider.cluster.planning.split import GroupSpan, Split, refusal, span, splits

R1, SCOUT = load_shape("deepseek-r1"), load_shape("scout")


@pytest.mark.parametrize(
    ("split", "named"),
    [
        (Split(tensor=3), r"tensor_parallel_size=3.*128 attention heads"),
        (Split(tensor=32), r"tensor_parallel_size=32.*blocks of 128 rows"),
        (Split(pipeline=62), r"pipeline_parallel_size=62.*61 layers"),
        (Split(tensor=2, data=4, expert=4), r"expert_parallel_size must be 1 or.*= 8"),
        (Split(data=48, expert=48), r"expert_parallel_size=48 does not divide.*256 experts"),
    ],
)
def test_what_r1_cannot_be_split_by_is_named_with_both_numbers(split: Split, named: str) -> None:
    assert re.search(named, refusal(R1, split) or "")


@pytest.mark.parametrize(
    "split",
    [
        Split(tensor=8),
        Split(tensor=16),
        Split(tensor=8, pipeline=2),
        Split(data=16, expert=16),
        Split(tensor=8, data=2, expert=16),
    ],
)
def test_how_r1_is_served_in_practice_is_allowed(split: Split) -> None:
    assert refusal(R1, split) is None


def test_redundant_experts_make_a_split_even() -> None:
    assert refusal(R1, Split(data=144, expert=144)) is not None
    assert refusal(R1, Split(data=144, expert=144), redundant_experts=32) is None


@given(st.integers(1, 40))
def test_every_split_that_is_found_is_allowed_and_within_the_fleet(ranks: int) -> None:
    found = list(splits(SCOUT, ranks))

    assert len(found) == len(set(found))
    assert Split() in found
    assert all(split.world_size <= ranks and refusal(SCOUT, split) is None for split in found)


@pytest.mark.parametrize(
    ("split", "group", "lies"),
    [
        (Split(tensor=8, data=2), "tensor", GroupSpan(size=8, near=8)),
        (Split(tensor=8, data=2), "stage", GroupSpan(size=16, near=8)),
        (Split(tensor=4, pipeline=3), "tensor", GroupSpan(size=4, near=4)),
        (Split(data=12), "stage", GroupSpan(size=12, near=4)),  # eight on one node, four on the other
        (Split(tensor=6, pipeline=2), "tensor", GroupSpan(size=6, near=2)),  # ranks 6..11 lie 2 and 4
    ],
)
def test_a_group_is_as_near_as_its_ranks_are_numbered(split: Split, group: str, lies: GroupSpan) -> None:
    assert span(split, group, gpus_per_node=8) == lies
