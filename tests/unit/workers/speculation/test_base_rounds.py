"""Rounds without drafts: what a burst says of them, what the machine's mood makes of that, and when another is due."""

import pytest

from outrider.workers.speculation.base_rounds import BURST, BaseRounds, Plain

LIKE = Plain(1, 100.0)


def measured(bursts: int = 1, seconds: float = 0.010, now: int = 10) -> BaseRounds:
    base = BaseRounds()
    for _ in range(bursts):
        base.measured(now, LIKE, [seconds] * BURST, speed=1.0)
    return base


def test_a_burst_tells_what_such_a_round_takes_whatever_disturbed_one_of_them() -> None:
    base = BaseRounds()
    base.measured(10, LIKE, [*[0.010] * (BURST - 1), 0.200], speed=1.0)

    assert base.known
    assert base.relative == pytest.approx(0.010, rel=0.1)


def test_too_few_rounds_say_nothing() -> None:
    base = BaseRounds()
    base.measured(10, LIKE, [0.010] * 3, speed=1.0)

    assert not base.known


def test_one_burst_does_not_outweigh_those_before_it() -> None:
    base = measured(bursts=5)
    base.measured(30, LIKE, [0.020] * BURST, speed=1.0)

    assert 0.012 < base.relative < 0.015


def test_what_was_measured_of_shorter_texts_says_little_of_longer_ones() -> None:
    base = measured(bursts=6)
    base.measured(30, Plain(1, 900.0), [0.015] * BURST, speed=1.0)

    assert base.relative == pytest.approx(0.015)


def test_a_burst_in_a_slow_moment_is_no_longer_than_one_in_a_quick_moment() -> None:
    base = BaseRounds()
    base.measured(10, LIKE, [0.014] * BURST, speed=1.4)

    assert base.relative == pytest.approx(0.010)


def test_the_machines_speed_at_a_burst_is_told_by_the_rounds_before_and_after_it() -> None:
    base = BaseRounds()
    base.measured(10, LIKE, [0.012] * BURST, speed=1.0)
    for _ in range(15):
        base.compare(1.4)
    before = base.relative
    for _ in range(40):
        base.compare(1.4)
    after = base.relative
    for _ in range(40):
        base.compare(3.0)

    assert before == pytest.approx(0.012)
    assert after == base.relative == pytest.approx(0.010)


def test_texts_that_have_grown_ask_for_another_burst() -> None:
    base = BaseRounds()
    for _ in range(6):
        base.measured(10, Plain(1, 1000.0), [0.010] * BURST, speed=1.0)

    assert not base.due(70, 1.1, 1200.0)
    assert base.due(70, 1.1, 1800.0)


def test_bursts_are_ever_further_apart_the_more_so_the_more_drafts_bring() -> None:
    def gap(base: BaseRounds, gain: float) -> int:
        return next(now for now in range(5000) if base.due(10 + now, gain, 100.0))

    first, known = gap(measured(), 1.1), measured(bursts=8)

    assert BaseRounds().due(0, 1.0, 100.0)
    assert first < gap(known, 1.0) <= gap(known, 1.1) < gap(known, 1.3) < gap(known, 2.0)
