"""What rounds take: learned from noisy rounds, extended to those that were never seen."""

import random

import numpy as np
import pytest

from outrider.workers.speculation.cost import RoundCost
from outrider.workers.speculation.known_times import Shape
from outrider.workers.speculation.line import Line

EXPERTS = (8, 2)


def shape(sequences: int, drafts: int, *, context: int = 100, steps: int = 0) -> Shape:
    rows = sequences + drafts
    return Shape(
        sequences, rows, sequences * context, rows * context, steps, steps * sequences, sequences if steps else 0
    )


def seconds(of: Shape) -> tuple[float, float]:
    """A machine: every part in proportion, and a kernel that pads to four rows."""
    woken = 8 * (1 - 0.75**of.rows)
    verify = 1.0 + 0.1 * of.rows + 0.15 * woken + 0.05 * of.sequences + 4e-5 * of.rows_context
    pad = 0.12 * (-of.rows % 4)
    return 1e-3 * (verify + pad), 1e-3 * (0.1 + (0.2 if of.steps else 0.0) + 0.15 * of.steps + 0.02 * of.drafts)


def taught(rounds: int, *, seed: int = 0, noise: float = 0.1) -> RoundCost:
    rng, cost = random.Random(seed), RoundCost(EXPERTS)
    for _ in range(rounds):
        sequences = rng.choice((1, 2, 4, 8))
        of = shape(sequences, rng.randint(0, 4 * sequences), context=rng.choice((50, 900)), steps=rng.randint(0, 4))
        disturbed = (1 + noise * rng.random()) * (5 if rng.random() < 0.02 else 1)
        cost.observe(of, *(took * disturbed for took in seconds(of)))
    return cost


def test_rounds_that_were_not_seen_are_forecast_within_a_tenth() -> None:
    cost, rng = taught(600), random.Random(1)
    errors = []
    for _ in range(200):
        sequences = rng.choice((1, 2, 3, 4, 6, 8))
        of = shape(
            sequences, rng.randint(0, 4 * sequences), context=rng.choice((50, 400, 900)), steps=rng.randint(0, 4)
        )
        wanted = 1.05 * sum(seconds(of))
        errors.append(abs(cost.forecast(of).whole_s - wanted) / wanted)

    assert np.mean(errors) < 0.1


def test_more_rows_never_take_less() -> None:
    added = taught(400, noise=0.5).more_rows(1, 60)

    assert len(added) == 61
    assert added[0] == 0
    assert (np.diff(added) >= 0).all()


def test_a_round_without_drafts_is_forecast_from_such_rounds() -> None:
    cost = taught(600)

    assert cost.undrafted(4, 400) == pytest.approx(1.05 * sum(seconds(shape(4, 0))), rel=0.08)


def test_a_machine_that_slows_down_is_followed() -> None:
    cost = taught(300, noise=0.0)
    of = shape(2, 3)
    for _ in range(80):
        cost.observe(of, *(3 * took for took in seconds(of)))

    assert cost.forecast(of).whole_s == pytest.approx(3 * sum(seconds(of)), rel=0.1)


def test_one_disturbed_round_hardly_moves_a_forecast() -> None:
    cost, of = taught(300, noise=0.0), shape(2, 3)
    before = cost.forecast(of).whole_s
    cost.observe(of, *(100 * took for took in seconds(of)))

    assert cost.forecast(of).whole_s == pytest.approx(before, rel=0.1)


def test_numbers_of_rows_that_were_not_seen_for_long_are_to_be_measured_again() -> None:
    cost = taught(300)
    for _ in range(400):
        cost.observe(shape(1, 1), *seconds(shape(1, 1)))

    assert cost.stale(20)
    assert not cost.stale(2)
    assert RoundCost().stale(1)


def test_each_drafter_has_a_time_of_its_own() -> None:
    cost = RoundCost(EXPERTS)
    for number in range(200):
        slow, quick = shape(1, 1, steps=number % 4), shape(1, 1, steps=number % 4)._replace(drafter="lookup")
        cost.observe(slow, *seconds(slow))
        cost.observe(quick, seconds(quick)[0], 1e-5)
    wanted = shape(1, 1, steps=3)

    slow, quick = (cost.forecast(each).whole_s for each in (wanted, wanted._replace(drafter="lookup")))
    assert slow == pytest.approx(sum(seconds(wanted)), rel=0.1)
    assert quick < seconds(wanted)[0] + 0.2 * seconds(wanted)[1]


def test_a_drafter_that_was_asked_about_before_anything_was_known_is_on_the_scale_of_the_rounds_since() -> None:
    cost = RoundCost(EXPERTS)
    cost.drafting("mtp")
    for _ in range(20):
        cost.observe(shape(1, 0), *seconds(shape(1, 0)))

    assert cost.forecast(shape(1, 0, steps=1)).draft_s < sum(seconds(shape(1, 0)))


def test_rows_beyond_the_widest_round_are_hoped_to_be_cheap_until_some_were_run() -> None:
    cost = RoundCost(EXPERTS)

    def run(rows: int) -> None:
        cost.observe(shape(1, rows - 1), 0.001 + 0.0005 * rows, 0.0)

    for number in range(60):
        run(number % 4 + 1)
    hoped = cost.forecast(shape(1, 7)).verify_s
    for _ in range(12):
        run(8)

    assert 0.003 < hoped < 0.0045
    assert cost.forecast(shape(1, 7)).verify_s == pytest.approx(0.005, rel=0.1)


def test_rounds_of_a_stop_tell_the_machines_speed_whatever_disturbed_one_of_them() -> None:
    cost, plain = taught(300, noise=0.0), shape(2, 0)
    cost.measured([(plain, sum(seconds(plain)))] * 8)
    before = cost.undrafted(2, 200.0)
    slow = [(plain, 1.5 * sum(seconds(plain)))] * 40
    cost.rested([*slow[:-2], (plain, 1.0), (shape(1, 0), 5.0), slow[0]])
    slower = cost.undrafted(2, 200.0)
    cost.rested([(plain, 1.0)])

    assert slower == pytest.approx(1.5 * before, rel=0.02)
    assert cost.undrafted(2, 200.0) == slower


def test_rounds_of_one_size_class_are_told_apart_by_their_sequences() -> None:
    """Five to eight share what is measured of any of them."""
    cost, measured = taught(600, noise=0.0), shape(5, 0)
    cost.measured([(measured, 0.9 * sum(seconds(measured)))] * 8)

    for sequences in (5, 6, 8):
        took = 0.9 * sum(seconds(shape(sequences, 0)))
        assert cost.undrafted(sequences, 100.0 * sequences) == pytest.approx(took, rel=0.05)
    assert cost.undrafted(5, 100_000.0) == cost.undrafted(5, 500.0)  # of longer ones nobody knows yet


def test_rounds_are_measured_together_though_sequences_come_and_end_among_them() -> None:
    cost = taught(600, noise=0.0)
    burst = [shape(6 + number % 2, 0) for number in range(6)]
    cost.measured([(each, 0.9 * sum(seconds(each))) for each in burst])
    slow = [shape(6 + number % 2, 0) for number in range(7)]
    cost_before = cost.undrafted(7, 700.0)
    cost.rested([(each, 1.2 * sum(seconds(each))) for each in slow])

    assert not cost.base_due(7, 700.0, 1.0)
    assert cost_before == pytest.approx(0.9 * sum(seconds(shape(7, 0))), rel=0.05)
    assert cost.undrafted(7, 700.0) == pytest.approx(1.2 * sum(seconds(shape(7, 0))), rel=0.05)


def test_rounds_of_a_stop_of_longer_texts_are_measured() -> None:
    cost, plain, long = taught(300, noise=0.0), shape(2, 0), shape(2, 0, context=4000)
    cost.measured([(plain, sum(seconds(plain)))] * 8)
    before = cost.forecast(shape(2, 3)).verify_s
    cost.rested([(long, 3.0 * sum(seconds(plain)))] * 40)

    assert cost.undrafted(2, 8000.0) == pytest.approx(3.0 * sum(seconds(plain)), rel=0.15)
    assert cost.forecast(shape(2, 3)).verify_s == pytest.approx(before, rel=0.2)


def test_a_line_finds_its_coefficients_and_none_below_zero() -> None:
    rng, line = random.Random(0), Line((1.0, 1.0, 1.0), memory=500)
    for _ in range(600):
        features = (1.0, rng.uniform(0, 5), rng.uniform(0, 5))
        line.observe(features, (2.0 + 3.0 * features[1]) * rng.uniform(0.95, 1.05))
        if line.due:
            line.solve()

    assert line.coefficients == pytest.approx([2.0, 3.0, 0.0], abs=0.2)
    assert min(line.coefficients) >= 0
