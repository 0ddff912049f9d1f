"""What all benchmarks use: prompts of any length, arms that take turns."""

import pytest

from benchmarks.common.arguments import numbers
from benchmarks.common.prompts import windows
from benchmarks.common.repeats import interleaved, paired


def test_prompts_start_with_another_text_each_and_run_on_into_the_next() -> None:
    sets = windows([[1, 2], [3], [4, 5, 6]], length=4, count=1)

    assert sets == [[[1, 2, 3, 4]], [[3, 4, 5, 6]], [[4, 5, 6, 1]]]


def test_prompts_that_do_not_fill_a_set_are_left_out() -> None:
    assert windows([[1], [2], [3]], length=1, count=2) == [[[1], [2]]]


def test_arms_take_turns_in_ever_other_orders() -> None:
    order: list[str] = []

    def arm(name: str) -> float:
        order.append(name)
        return float(len(order))

    figures = interleaved({name: lambda name=name: arm(name) for name in "abc"}, repeats=8)
    turns = [order[at : at + 3] for at in range(0, 24, 3)]

    assert turns[0] == ["a", "b", "c"]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert len({turn[0] for turn in turns}) == 3
    assert figures["a"] == [1.0 + at for at, name in enumerate(order) if name == "a"]


def test_arms_are_held_against_each_other_in_the_same_turn() -> None:
    """The machine is at half its speed in the second turn, and disturbed in one arm of the third."""
    rates = {"off": [100.0, 50.0, 100.0], "2": [130.0, 65.0, 20.0]}

    assert paired(rates, "off") == pytest.approx({"off": 1.0, "2": 1.3})


def test_numbers_of_an_empty_list_are_none() -> None:
    assert (numbers("1,16"), numbers("")) == ([1, 16], [])
