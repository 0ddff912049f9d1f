"""Work that makes no progress is told, with what hangs; slow work that was to be expected is not."""

import pytest

from outrider.workers.engine.progress import LEAST_S, TIMES_THE_FORECAST, Progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def rounds(progress: Progress, clock: Clock, count: int, seconds: float, rows: int = 4) -> None:
    for number in range(count):
        progress.busy()
        progress.began(number, rows)
        clock.now += seconds
        progress.finished(number, rows)


def test_an_idle_engine_does_not_hang_however_long_it_sleeps() -> None:
    clock = Clock()
    progress = Progress(clock)
    rounds(progress, clock, 3, 0.01)
    progress.idle()

    clock.now += 1e6

    assert progress.stall() == ""


def test_a_round_that_does_not_end_is_named_with_those_before_it() -> None:
    clock = Clock()
    progress = Progress(clock)
    rounds(progress, clock, 3, 0.01)
    progress.began(7, 4)

    clock.now += LEAST_S - 0.1
    assert progress.stall() == ""
    clock.now += 0.2

    said = progress.stall()
    assert "in round 7 of 4 rows" in said
    assert "2 (4 rows, 10.0 ms)" in said


def test_work_that_no_round_is_made_of_hangs_too() -> None:
    clock = Clock()
    progress = Progress(clock)
    progress.busy()

    clock.now += LEAST_S + 1

    assert "between rounds" in progress.stall()


def test_rounds_that_take_long_may_take_longer_and_larger_ones_in_proportion() -> None:
    clock = Clock()
    progress = Progress(clock)
    rounds(progress, clock, 5, 2.0)

    progress.began(9, 4)
    assert progress.limit_s == TIMES_THE_FORECAST * 2.0
    progress.began(9, 400)
    assert progress.limit_s == TIMES_THE_FORECAST * 200.0
    progress.began(9, 1)
    assert progress.limit_s == TIMES_THE_FORECAST * 2.0


def test_rounds_of_few_rows_are_not_given_what_a_prompt_took_once_some_of_them_are_known() -> None:
    clock = Clock()
    progress = Progress(clock)
    prompt_s, prompt_rows, token_s = 4.0, 2000, 0.5
    progress.busy()
    progress.began(0, prompt_rows)
    clock.now += prompt_s
    progress.finished(0, prompt_rows)
    rounds(progress, clock, 20, token_s)

    progress.began(21, 4)
    assert progress.limit_s == pytest.approx(TIMES_THE_FORECAST * token_s)
    progress.began(21, prompt_rows)
    assert progress.limit_s == pytest.approx(TIMES_THE_FORECAST * prompt_s * 0.99**20)


def test_one_slow_round_is_forgotten_in_time() -> None:
    clock = Clock()
    progress = Progress(clock)
    rounds(progress, clock, 1, 60.0)
    rounds(progress, clock, 1000, 0.01)

    assert progress.limit_s == LEAST_S
