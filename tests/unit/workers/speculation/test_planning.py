"""Which slots are worth their time."""

import itertools

import numpy as np
import pytest

from outrider.workers.speculation.planning import (
    DraftSeconds,
    depth_worth_alone,
    depths_worth,
    slots_worth,
    slots_worth_of_few,
)

NOTHING = np.zeros(2)
STRAIGHT = 0.2 * np.arange(20)  # seconds: a row takes 0.2


def survivals(*rows: list[float]) -> np.ndarray:
    return np.array(rows)


def test_a_slot_is_verified_while_it_survives_more_often_than_its_time_is_worth() -> None:
    chances = survivals([0.9, 0.5, 0.1], [0.3, 0.15, 0.01])

    assert slots_worth(chances, NOTHING, STRAIGHT, price=1.0).counts == [2, 1]
    assert slots_worth(chances, NOTHING, STRAIGHT, price=2.0).counts == [2, 0]
    assert slots_worth(chances, NOTHING, STRAIGHT, price=10.0).counts == [0, 0]
    assert slots_worth(chances, NOTHING, STRAIGHT, price=0.0).counts == [3, 3]


def test_rows_that_are_free_up_to_a_border_are_taken_up_to_it() -> None:
    padded = np.array([0.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0])
    chances = survivals([0.7, 0.6, 0.5], [0.4, 0.1, 0.05])

    worth = slots_worth(chances, NOTHING, padded, price=1.0)

    assert worth.counts == [3, 0]
    assert worth.best == pytest.approx(1.8 - 1.0)


def test_a_long_context_costs_more_to_verify() -> None:
    chances = survivals([0.5, 0.4], [0.5, 0.4])

    assert slots_worth(chances, np.array([0.0, 0.4]), STRAIGHT, price=1.0).counts == [2, 0]


def test_no_other_choice_of_slots_brings_more() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        chances = np.cumprod(rng.uniform(0.2, 1.0, (3, 3)), axis=1)
        curve = np.cumsum([0.0, *rng.uniform(0.0, 0.5, 9)])
        worth = slots_worth(chances, np.zeros(3), curve, price=1.0)

        def brings(counts: tuple[int, ...], chances: np.ndarray = chances, curve: np.ndarray = curve) -> float:
            gained = sum(chances[s, :count].sum() for s, count in enumerate(counts))
            return float(gained - (curve[sum(counts)] - curve[0]))

        best = max(brings(counts) for counts in itertools.product(range(4), repeat=3))
        assert worth.best == pytest.approx(max(best, 0.0))
        assert brings(tuple(worth.counts)) == pytest.approx(max(best, 0.0))


CHEAP, DEAR = DraftSeconds(0.05, 0.05, 0.0), DraftSeconds(0.5, 0.8, 0.0)


def test_drafts_are_made_no_deeper_than_they_could_be_verified() -> None:
    chances = survivals([0.9, 0.8, 0.7, 0.15], [0.5, 0.1, 0.05, 0.01])

    assert depths_worth(chances, NOTHING, STRAIGHT, CHEAP, price=1.0).depths == [3, 1]


def test_a_step_is_made_only_where_the_sequences_together_pay_for_it() -> None:
    alone, several = survivals([0.9, 0.8]), survivals(*[[0.9, 0.8]] * 4)

    assert depths_worth(alone, np.zeros(1), STRAIGHT, DEAR, price=1.0).gain < 0
    assert depths_worth(several, np.zeros(4), STRAIGHT, DEAR, price=1.0).depths == [2] * 4


def test_no_step_is_made_for_rows_that_would_not_be_verified() -> None:
    """The first four rows are cheap, and the next ones dearer than any draft is worth."""
    border = np.array([0.0, 0.1, 0.2, 0.3, 0.4, *(5.0 + 0.1 * np.arange(8))])
    chances = survivals([0.95, 0.9, 0.85, 0.8], [0.95, 0.9, 0.85, 0.8])

    assert depths_worth(chances, NOTHING, border, CHEAP, price=1.0).depths == [2, 2]


def test_a_lone_sequence_is_decided_as_in_numpy() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        chances = np.cumprod(rng.uniform(0.3, 1.0, (1, 5)), axis=1)
        price = float(rng.uniform(0.1, 2.0))

        straight = 0.2 * np.arange(6)
        one = depth_worth_alone(chances[0].tolist(), 0.02, straight, CHEAP, price)
        among = depths_worth(chances, np.array([0.02]), straight, CHEAP, price)
        assert one.depths == among.depths
        assert (one.gain, one.brings) == pytest.approx((among.gain, among.brings))


def test_few_drafts_are_decided_as_in_numpy() -> None:
    rng = np.random.default_rng(2)
    for sequences in (1, 1, 3, 4) * 50:
        chances = np.cumprod(rng.uniform(0.3, 1.0, (sequences, 5)), axis=1)
        curve = np.cumsum([0.0, *rng.uniform(0.0, 0.5, 5 * sequences)])
        price = float(rng.uniform(0.1, 2.0))

        few = slots_worth_of_few(chances.tolist(), (price * (curve + 0.02 * np.arange(len(curve)))).tolist())
        many = slots_worth(chances, np.full(sequences, 0.02), curve, price)

        assert few.counts == many.counts
        assert (few.best, few.every) == pytest.approx((many.best, many.every))


def test_the_gain_of_drafting_is_told_and_the_loss_where_there_is_none() -> None:
    worth = depths_worth(survivals([0.9, 0.1], [0.8, 0.1]), NOTHING, STRAIGHT, CHEAP, price=1.0)
    lost = depths_worth(survivals([0.1, 0.05], [0.1, 0.05]), NOTHING, STRAIGHT, CHEAP, price=1.0)

    assert worth == ([1, 1], pytest.approx(1.7 - 0.4 - 0.1), pytest.approx(1.7))
    assert lost == ([1, 1], pytest.approx(0.2 - 0.4 - 0.1), pytest.approx(0.2))
