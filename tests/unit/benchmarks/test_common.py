"""What all benchmarks use: prompts of any length, arms that take turns."""

from common import interleaved, numbers, windows


def test_prompts_start_with_another_text_each_and_run_on_into_the_next() -> None:
    sets = windows([[1, 2], [3], [4, 5, 6]], length=4, count=1)

    assert sets == [[[1, 2, 3, 4]], [[3, 4, 5, 6]], [[4, 5, 6, 1]]]


def test_prompts_that_do_not_fill_a_set_are_left_out() -> None:
    assert windows([[1], [2], [3]], length=1, count=2) == [[[1], [2]]]


def test_arms_take_turns() -> None:
    order: list[str] = []

    def arm(name: str) -> float:
        order.append(name)
        return float(len(order))

    figures = interleaved({"a": lambda: arm("a"), "b": lambda: arm("b")}, repeats=2)

    assert order == ["a", "b", "a", "b"]
    assert figures == {"a": [1.0, 3.0], "b": [2.0, 4.0]}


def test_numbers_of_an_empty_list_are_none() -> None:
    assert (numbers("1,16"), numbers("")) == ([1, 16], [])
