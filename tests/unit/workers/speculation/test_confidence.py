"""From the lead of a draft's score to how likely it stands, and to whether it is worth verifying."""

import random

import pytest

from outrider.workers.speculation.confidence import Confidence
from outrider.workers.speculation.price import VerificationPrice


def test_a_wider_lead_is_a_likelier_draft() -> None:
    chances = [Confidence().probability(False, lead) for lead in (0.0, 0.5, 2.0, 6.0)]

    assert chances == sorted(chances)
    assert chances[0] < 0.5
    assert chances[-1] > 0.95


def test_a_draft_survives_only_with_all_before_it() -> None:
    confidence = Confidence()
    first, second = confidence.survivals(True, [1.0, 0.3])

    assert first == confidence.probability(True, 1.0)
    assert second == pytest.approx(first * confidence.probability(True, 0.3))


def test_it_learns_how_often_drafts_of_a_lead_stand() -> None:
    draw = random.Random(1)
    confidence = Confidence()
    for _ in range(4000):
        lead = draw.choice([0.5, 3.0])
        confidence.observe(False, [lead], int(draw.random() < {0.5: 0.2, 3.0: 0.7}[lead]))

    assert confidence.probability(False, 0.5) == pytest.approx(0.2, abs=0.1)
    assert confidence.probability(False, 3.0) == pytest.approx(0.7, abs=0.1)
    assert confidence.probability(True, 0.5) == Confidence().probability(True, 0.5)


def test_drafts_after_the_first_miss_teach_nothing() -> None:
    short, long = Confidence(), Confidence()

    short.observe(False, [1.0, 0.2], accepted=1)
    long.observe(False, [1.0, 0.2, 5.0, 5.0], accepted=1)

    assert short.probability(False, 5.0) == long.probability(False, 5.0)


def _after(rounds: int, base_s: float, row_s: float) -> VerificationPrice:
    price = VerificationPrice()
    for number in range(rounds):
        rows = 1 + number % 4
        price.observe(rows, tokens=2, round_s=base_s + row_s * rows, made_s=0.0)
    return price


def test_a_row_costs_what_it_adds_to_a_round_at_the_present_speed() -> None:
    price = _after(400, base_s=0.010, row_s=0.002)

    assert price.per_draft == pytest.approx(0.5 * 0.002 * 2 / 0.015, rel=0.05)  # half of it, out of caution


def test_free_rows_cost_nothing_however_slow_a_round_is() -> None:
    assert _after(400, base_s=0.010, row_s=0.0).per_draft == pytest.approx(0.0, abs=1e-6)


def test_nothing_is_asked_before_a_rows_time_is_known() -> None:
    assert VerificationPrice().per_draft == 0
    assert _after(5, base_s=0.010, row_s=0.002).per_draft == 0
    alike = VerificationPrice()
    for _ in range(200):
        alike.observe(3, tokens=2, round_s=0.01, made_s=0.0)
    assert alike.per_draft == 0


def test_one_disturbed_round_hardly_moves_the_price() -> None:
    price = _after(400, base_s=0.010, row_s=0.002)
    before = price.per_draft
    price.observe(1, tokens=2, round_s=3.0, made_s=0.0)

    assert price.per_draft == pytest.approx(before, rel=0.6)
