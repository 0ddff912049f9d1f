"""What rounds take: learned from noisy rounds, extended to shapes that were never seen."""

import random

import numpy as np
import pytest

from outrider.workers.depth.regression import LeastSquares
from outrider.workers.depth.round_time import RoundTime, Shape

EXPERTS = (8, 2)


def shape(sequences: int, drafts: int, *, context: int = 100, steps: int = 0) -> Shape:
    rows, followed = sequences + drafts, sequences if steps else 0
    return Shape(sequences, rows, sequences * context, rows * context, 0, steps, steps * sequences, followed=followed)


def seconds(of: Shape) -> tuple[float, float]:
    """A machine: every part in proportion, and a kernel that pads to four rows."""
    experts = 8 * (1 - 0.75**of.rows)
    verify = 1.0 + 0.1 * of.rows + 0.15 * experts + 0.05 * of.sequences + 4e-5 * of.rows_context
    pad = 0.12 * (-of.rows % 4)
    return 1e-3 * (verify + pad), 1e-3 * (0.1 + (0.2 if of.steps else 0.0) + 0.15 * of.steps + 0.02 * of.drafts)


def taught(rounds: int, *, noise: float = 0.1) -> RoundTime:
    rng, time = random.Random(0), RoundTime(EXPERTS)
    for _ in range(rounds):
        sequences = rng.choice((1, 2, 4, 8))
        of = shape(sequences, rng.randint(0, 4 * sequences), context=rng.choice((50, 900)), steps=rng.randint(0, 4))
        disturbed = (1 + noise * rng.random()) * (5 if noise and rng.random() < 0.02 else 1)
        time.observe(of, *(took * disturbed for took in seconds(of)))
    return time


def test_rounds_that_were_not_seen_are_forecast_within_a_tenth() -> None:
    time, rng, errors = taught(600), random.Random(1), list[float]()
    for _ in range(200):
        sequences = rng.choice((1, 2, 3, 4, 6, 8))
        of = shape(
            sequences, rng.randint(0, 4 * sequences), context=rng.choice((50, 400, 900)), steps=rng.randint(0, 4)
        )
        wanted = 1.05 * sum(seconds(of))
        errors.append(abs(time.forecast_s(of) - wanted) / wanted)

    assert np.mean(errors) < 0.1


def test_a_kernel_that_pads_its_rows_is_known_row_by_row() -> None:
    """Five rows take as long as eight."""
    rng, time = random.Random(0), RoundTime()
    for _ in range(600):
        rows = rng.randint(1, 8)
        time.observe(shape(1, rows - 1), 1e-3 * (1.5 if rows <= 4 else 2.0), 0.0)

    forecasts = [time.forecast_s(shape(1, rows - 1)) for rows in (1, 4, 5, 8)]
    assert forecasts == pytest.approx([0.0015, 0.0015, 0.002, 0.002], rel=0.05)


def test_more_rows_never_take_less_and_far_more_than_any_yet_are_not_run() -> None:
    time = taught(400, noise=0.5)  # of up to 40 rows
    added = time.more_rows(1, 60)

    assert len(added) == 61
    assert added[0] == 0.0
    assert (np.diff(added) >= 0.0).all()
    assert np.isinf(time.more_rows(1, 200)[-1])


def test_a_machine_that_slows_down_is_followed() -> None:
    time, of = taught(300, noise=0.0), shape(2, 3)
    for _ in range(80):
        time.observe(of, *(3 * took for took in seconds(of)))

    assert time.forecast_s(of) == pytest.approx(3 * sum(seconds(of)), rel=0.1)
    assert time.plain_s(shape(4, 0)) == pytest.approx(3 * sum(seconds(shape(4, 0))), rel=0.2)


def test_one_disturbed_round_hardly_moves_a_forecast() -> None:
    time, of = taught(300, noise=0.0), shape(2, 3)
    before = time.forecast_s(of)
    time.observe(of, *(100 * took for took in seconds(of)))

    assert time.forecast_s(of) == pytest.approx(before, rel=0.1)


def test_each_drafter_has_a_time_of_its_own() -> None:
    time = RoundTime(EXPERTS)
    for number in range(200):
        slow, quick = shape(1, 1, steps=number % 4), shape(1, 1, steps=number % 4)._replace(drafter="other")
        time.observe(slow, *seconds(slow))
        time.observe(quick, seconds(quick)[0], 1e-5)
    wanted = shape(1, 1, steps=3)

    assert time.forecast_s(wanted) == pytest.approx(sum(seconds(wanted)), rel=0.1)
    assert time.forecast_s(wanted._replace(drafter="other")) < seconds(wanted)[0] + 0.2 * seconds(wanted)[1]


def test_rows_beyond_the_widest_round_seem_cheap_until_some_were_run() -> None:
    time = RoundTime(EXPERTS)

    def run(rows: int) -> None:
        time.observe(shape(1, rows - 1), 0.001 + 0.0005 * rows, 0.0)

    for number in range(60):
        run(number % 4 + 1)
    before = time.forecast_s(shape(1, 7))
    for _ in range(12):
        run(8)

    assert 0.003 < before < 0.0045
    assert time.forecast_s(shape(1, 7)) == pytest.approx(0.005, rel=0.1)


def measure(time: RoundTime, of: Shape, took_s: float, rounds: int) -> None:
    """Plain rounds in a row."""
    time.observe_plain(of, [took_s] * rounds)


def test_plain_rounds_take_what_was_measured_of_them() -> None:
    """Whatever rounds with drafts say: these are a tenth slower, as where the drafter takes the caches."""
    time, plain = taught(600, noise=0.0), shape(4, 0)
    for _ in range(12):
        measure(time, plain, 0.9 * sum(seconds(plain)), 8)

    assert time.plain_s(plain) == pytest.approx(0.9 * sum(seconds(plain)), rel=0.03)


def test_many_plain_rounds_tell_the_machines_speed_whatever_disturbed_one_of_them() -> None:
    time, plain = taught(600, noise=0.0), shape(2, 0)
    measure(time, plain, sum(seconds(plain)), 8)
    before = time.plain_s(plain)
    time.observe_plain(plain, [1.5 * sum(seconds(plain))] * 40 + [1.0])

    assert time.plain_s(plain) == pytest.approx(1.5 * before, rel=0.1)


def test_a_measurement_is_not_misled_by_one_disturbed_round() -> None:
    time, plain = taught(600, noise=0.0), shape(2, 0)
    measure(time, plain, sum(seconds(plain)), 8)
    before = time.plain_s(plain)
    time.observe_plain(plain, [sum(seconds(plain))] * 6 + [1.0])

    assert time.plain_s(plain) == pytest.approx(before, rel=0.02)


def test_a_machine_that_turns_slow_slows_plain_rounds_and_drafted_ones_alike() -> None:
    time, plain, drafted = taught(600, noise=0.0), shape(2, 0), shape(2, 3)
    measure(time, plain, sum(seconds(plain)), 8)
    before_s, ratio = time.plain_s(plain), time.forecast_s(drafted) / time.plain_s(plain)
    for _ in range(40):
        round_s, draft_s = seconds(drafted)
        time.observe(drafted, 1.5 * round_s, 1.5 * draft_s)

    assert time.plain_s(plain) == pytest.approx(1.5 * before_s, rel=0.1)
    assert time.forecast_s(drafted) / time.plain_s(plain) == pytest.approx(ratio, rel=0.1)


def test_plain_rounds_of_one_size_class_are_told_apart_by_their_sequences() -> None:
    """Five to eight share what is measured of any of them."""
    time, measured = taught(600, noise=0.0), shape(5, 0)
    for _ in range(12):
        measure(time, measured, 0.9 * sum(seconds(measured)), 8)

    for sequences in (5, 6, 8):
        assert time.plain_s(shape(sequences, 0)) == pytest.approx(0.9 * sum(seconds(shape(sequences, 0))), rel=0.06)


def test_least_squares_finds_its_coefficients_and_none_below_zero() -> None:
    rng, line = random.Random(0), LeastSquares((1.0, 1.0, 1.0), memory=500)
    for _ in range(600):
        features = (1.0, rng.uniform(0, 5), rng.uniform(0, 5))
        line.observe(features, (2.0 + 3.0 * features[1]) * rng.uniform(0.95, 1.05))

    assert line.coefficients == pytest.approx([2.0, 3.0, 0.0], abs=0.2)
    assert min(line.coefficients) >= 0.0
