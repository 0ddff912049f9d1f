"""Rounds without drafts: what a burst says of them, what the machine's mood makes of that, and when another is due."""

import pytest

from outrider.workers.speculation.base_rounds import BURST, BaseRounds, Plain
from outrider.workers.speculation.known_times import KnownTimes, Shape

LIKE = Plain(1, 100.0)
KNOWN = KnownTimes([0.0, 0.010, 0.012, 0.014], (0.0,) * 7, {"mtp": (0.0, 0.0, 0.001, 0.001, 0.0)})
ROWS = frozenset({1, 3})
DRAFTED = Shape(1, 3, 100.0, 300.0, steps=2, drafts=2)


def measured(seconds: float = 0.010, now: int = 10) -> BaseRounds:
    base = BaseRounds()
    base.measured(now, LIKE, [seconds] * BURST, KNOWN, ROWS)
    return base


def test_a_burst_tells_what_such_a_round_takes_whatever_disturbed_one_of_them() -> None:
    base = BaseRounds()
    base.measured(10, LIKE, [*[0.010] * (BURST - 1), 0.200], KNOWN, ROWS)

    assert base.known
    assert base.seconds == pytest.approx(0.010, rel=0.1)


def test_too_few_rounds_say_nothing() -> None:
    base = BaseRounds()
    base.measured(10, LIKE, [0.010] * 3, KNOWN, ROWS)

    assert not base.known


def test_one_burst_does_not_outweigh_those_before_it_but_a_long_time_without_drafts_does() -> None:
    base = measured()
    for _ in range(4):
        base.measured(20, LIKE, [0.010] * BURST, KNOWN, ROWS)
    base.measured(30, LIKE, [0.020] * BURST, KNOWN, ROWS)

    few = base.seconds
    base.measured(40, LIKE, [0.020] * 128, KNOWN, ROWS)

    assert 0.012 < few < 0.014
    assert base.seconds > 0.019


def test_what_was_measured_of_shorter_texts_says_little_of_longer_ones() -> None:
    base = measured()
    for _ in range(5):
        base.measured(20, LIKE, [0.010] * BURST, KNOWN, ROWS)
    base.measured(30, Plain(1, 900.0), [0.015] * BURST, KNOWN, ROWS)

    assert base.seconds == pytest.approx(0.015)


def test_where_all_rounds_get_slower_those_without_drafts_are_taken_to_as_well() -> None:
    base = measured()
    for _ in range(40):
        base.compare(DRAFTED, 0.014)
    before = base.seconds
    for _ in range(100):
        base.compare(DRAFTED, 0.0154)
    slower = base.seconds
    for _ in range(100):
        base.compare(DRAFTED, 0.028)

    assert before == pytest.approx(0.010)
    assert slower == pytest.approx(0.011, rel=0.02)
    assert base.seconds == pytest.approx(0.012)  # a base that is believed without a burst might flatter


@pytest.mark.parametrize("rows", [2, 9])
def test_numbers_of_rows_that_were_hardly_known_at_the_burst_tell_no_mood(rows: int) -> None:
    base = measured()
    for _ in range(60):
        base.compare(Shape(1, rows, 100.0, 100.0 * rows), 0.500)

    assert base.seconds == pytest.approx(0.010)


def test_texts_that_have_grown_ask_for_another_burst() -> None:
    base = BaseRounds()
    for _ in range(6):
        base.measured(10, Plain(1, 1000.0), [0.010] * BURST, KNOWN, ROWS)

    assert not base.due(70, 1.1, 1200.0)
    assert base.due(70, 1.1, 1800.0)


def test_bursts_are_ever_further_apart_the_more_so_the_more_drafts_bring() -> None:
    def gap(base: BaseRounds, gain: float) -> int:
        return next(now for now in range(5000) if base.due(10 + now, gain, 100.0))

    base = measured()
    first = gap(base, 1.1)
    for _ in range(5):
        base.measured(10, LIKE, [0.010] * BURST, KNOWN, ROWS)

    assert BaseRounds().due(0, 1.0, 100.0)
    assert first < gap(base, 1.0) <= gap(base, 1.1) < gap(base, 1.3) < gap(base, 2.0)


def test_a_change_of_mood_asks_for_another_burst() -> None:
    base = measured()
    for _ in range(5):
        base.measured(10, LIKE, [0.010] * BURST, KNOWN, ROWS)
    for _ in range(20):
        base.compare(DRAFTED, 0.014)
    before = base.due(70, 1.1, 100.0)
    for _ in range(60):
        base.compare(DRAFTED, 0.019)

    assert not before
    assert base.due(70, 1.1, 100.0)
