"""What rounds take: learned from noisy rounds, interpolated where none was seen."""

import random

import pytest

from outrider.workers.speculation.cost import RoundCosts, size_class

DEPTHS = (0, 1, 2, 3, 4, 6)


def test_what_disturbs_a_few_rounds_hardly_moves_the_estimate() -> None:
    rng, costs = random.Random(0), RoundCosts(DEPTHS)
    for number in range(300):
        costs.observe(1, 2, 100.0 if number in (0, 50, 100) else 1.0 + 0.05 * rng.random())

    assert costs.seconds(1, 2) == pytest.approx(1.025, rel=0.05)


def test_a_lasting_change_is_followed() -> None:
    costs = RoundCosts(DEPTHS)
    for seconds in [1.0] * 50 + [5.0] * 60:
        costs.observe(1, 2, seconds)

    assert costs.seconds(1, 2) == pytest.approx(5.0, rel=0.05)


@pytest.mark.parametrize(("depth", "seconds"), [(0, 10.0), (1, 12.0), (2.5, 15.0), (3, 16.0), (6, 22.0)])
def test_depths_that_were_not_tried_lie_on_the_line_through_those_that_were(depth: float, seconds: float) -> None:
    costs = RoundCosts(DEPTHS)
    costs.observe(1, 0, 10.0)
    costs.observe(1, 3, 16.0)

    assert costs.seconds(1, depth) == pytest.approx(seconds)


def test_rounds_of_mixed_depth_teach_both_neighbours_of_the_mean() -> None:
    rng, costs = random.Random(1), RoundCosts(DEPTHS)
    for _ in range(400):
        mean = rng.uniform(1, 3)
        costs.observe(8, mean, 20 + 3 * mean)

    for depth in (1, 2, 3):
        assert costs.seconds(8, depth) == pytest.approx(20 + 3 * depth, rel=0.02)


def test_sizes_are_apart_and_an_unknown_one_takes_the_nearest() -> None:
    costs = RoundCosts(DEPTHS)
    costs.observe(1, 0, 1.0)
    costs.observe(16, 0, 9.0)

    assert [costs.seconds(batch, 0) for batch in (1, 2, 12, 16, 64)] == [1.0, 1.0, 9.0, 9.0, 9.0]
    assert (costs.seen(1, 0), costs.seen(2, 0), costs.seen(16, 0)) == (1, 0, 1)
    assert [size_class(batch) for batch in (1, 2, 3, 4, 5, 8, 9)] == [0, 1, 2, 2, 3, 3, 4]


def test_estimates_stay_above_zero_where_the_line_would_cross_it() -> None:
    costs = RoundCosts(DEPTHS)
    costs.observe(1, 3, 1.0)
    costs.observe(1, 4, 9.0)

    assert all(costs.seconds(1, depth) > 0 for depth in DEPTHS)
