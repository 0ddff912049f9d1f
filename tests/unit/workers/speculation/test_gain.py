"""What speculation gains."""

import pytest

from outrider.workers.speculation.gain import Gain, size_class


def test_at_first_nothing_is_gained() -> None:
    assert Gain().of(4) == 1.0


def test_it_rises_with_what_speculation_gains() -> None:
    gain = Gain()
    for _ in range(300):
        gain.observe(1, tokens=3, took=1.5)

    assert gain.of(1) == pytest.approx(2.0, rel=0.02)


def test_it_never_falls_below_that_without_drafts() -> None:
    gain = Gain()
    for _ in range(300):
        gain.observe(1, tokens=1, took=3.0)

    assert gain.of(1) == 1.0


def test_sizes_of_batch_are_apart_and_an_unknown_one_takes_the_nearest() -> None:
    gain = Gain()
    for _ in range(300):
        gain.observe(1, tokens=3, took=1.5)
        gain.observe(16, tokens=16, took=1.0)

    assert gain.of(2) == gain.of(1) > gain.of(16) == gain.of(64)
    assert [size_class(batch) for batch in (1, 2, 3, 4, 5, 8, 9)] == [0, 1, 2, 2, 3, 3, 4]


def test_rounds_that_are_told_together_count_as_one_by_one() -> None:
    one, together = Gain(), Gain()
    for _ in range(12):
        one.observe(4, 10.0, 1.5)
    together.observe(4, 120.0, 18.0, 12)

    assert together.of(4) == pytest.approx(one.of(4))
