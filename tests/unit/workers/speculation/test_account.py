"""What rounds took and brought, booked where it belongs."""

import math

import numpy as np
import pytest

from outrider.workers.speculation.account import Account, Took
from outrider.workers.speculation.base_rounds import BURST
from outrider.workers.speculation.cost import RoundCost
from outrider.workers.speculation.known_times import Shape
from outrider.workers.types.counters import SpeculationFigures

GREEDY, DRAWN = 0, 1


def account() -> Account:
    """That knows what a round without drafts takes: 10 ms."""
    known = Account(RoundCost(), SpeculationFigures())
    known.observe_base([(Shape(1, 1, 100.0, 100.0), 0.010)] * BURST)
    for _ in range(24):
        known.observe(took(known, rows=1, tokens=1, ready=False))
    return known


def took(of: Account, *, rows: int, tokens: int, ready: bool = True) -> Took:
    return Took(Shape(1, rows, 100.0, 100.0 * rows, ready=ready), tokens, 0.010 * rows, 0.0, 0.0, True)


def test_a_loss_is_booked_where_it_was_made_though_others_are_at_hand_when_it_is_learned() -> None:
    of = account()
    of.turn_to(1, DRAWN)
    drawn = of.ledger
    before = drawn.level
    of.observe(took(of, rows=3, tokens=1))
    of.turn_to(1, GREEDY)
    greedy = of.ledger.level
    for _ in range(4):
        of.observe(took(of, rows=3, tokens=3))

    assert drawn.level < before - 0.5
    assert of.ledger.level >= greedy - 0.1


def test_sizes_and_heats_have_ledgers_of_their_own() -> None:
    of = account()
    found = []
    for sequences, heat in ((1, GREEDY), (1, DRAWN), (2, GREEDY), (3, GREEDY), (4, GREEDY)):
        of.turn_to(sequences, heat)
        found.append(id(of.ledger))

    assert len(set(found)) == 4
    assert found[3] == found[4]


def test_rounds_without_drafts_are_measured_at_first_and_again_after_a_while() -> None:
    of = Account(RoundCost(), SpeculationFigures())
    assert of.base_due(1, 100.0)
    of.observe_base([(Shape(1, 1, 100.0, 100.0), 0.010)] * BURST)
    assert not of.base_due(1, 100.0)
    assert of.base_due(2, 200.0)
    for _ in range(20):
        of.observe(took(of, rows=2, tokens=1))

    assert of.base_due(1, 100.0)


def test_while_stopped_few_rounds_are_looked_at() -> None:
    of = account()
    while not of.ledger.stopped:
        of.ledger.settle(worth=1.0, took=9.0)
    looked_at, round = 0, (Shape(1, 1, 100.0, 100.0), 0.020)
    for _ in range(640):
        if of.unseen:
            of.slept([round])
        else:
            looked_at += 1
            of.observe_plain(*round)

    assert 4 <= looked_at <= 20
    assert of.cost.undrafted(1, 100.0) == pytest.approx(0.020, rel=0.1)


def test_rounds_of_which_only_the_sums_are_known_are_settled_too() -> None:
    one, other = account(), account()
    for _ in range(12):
        one.observe(took(one, rows=3, tokens=1))
        other.observe(took(other, rows=3, tokens=1))
    one.observe(took(one, rows=3, tokens=1))
    other.count(1, 1, 1.0, 0.030 / other.cost.undrafted(1, 100.0))

    assert other.ledger.level == pytest.approx(one.ledger.level, abs=0.3)
    assert other.gain.of(1) == pytest.approx(one.gain.of(1), rel=0.02)


def test_a_forecast_that_is_far_off_costs_the_ledger_no_more_than_was_seen() -> None:
    of = account()
    before = of.ledger.level
    of.cost.drafting("mtp").coefficients[2] = 5.0  # relative seconds, to start drafting: never seen, and quite wrong
    of.observe(Took(Shape(1, 3, 100.0, 300.0, steps=1, drafts=1, followed=1), 3, 0.020, 0.002, 0.0, True))

    assert before - 1.0 < of.ledger.level


def test_the_machines_moods_are_not_charged_to_speculation() -> None:
    """Rounds of three drafts that break even, on a machine that is slower for a while, again and again."""
    of, lowest = account(), math.inf
    for number in range(600):
        slow = 1.3 if number // 50 % 2 else 1.0
        if of.base_due(1, 100.0):
            of.observe_base([(Shape(1, 1, 100.0, 100.0), 0.010 * slow)] * BURST)
        of.cost.more_rows(1, 3)  # as is asked before each round
        of.observe(Took(Shape(1, 3, 100.0, 300.0, ready=True), 3, 0.030 * slow, 0.0, 0.0, True))
        lowest = min(lowest, of.ledger.level)

    assert lowest > 6.0


def test_a_forecast_that_is_far_too_high_is_not_believed() -> None:
    of = account()
    for _ in range(20):
        of.cost.more_rows(1, 3)
        of.observe(took(of, rows=3, tokens=3))
    before = of.ledger.level
    of.cost._cells.factors = lambda most: np.full(most + 1, 100.0)  # type: ignore[method-assign]
    of.cost._tabulate(8)
    of.observe(Took(Shape(1, 3, 100.0, 300.0, ready=True), 3, 0.030, 0.0, 0.0, True))

    assert of.ledger.level > before - 20.0


def test_a_round_without_any_part_for_drafts_costs_nothing_however_long_it_takes() -> None:
    of = account()
    before = of.ledger.level
    for _ in range(20):
        of.observe(Took(Shape(1, 1, 100.0, 100.0), 1, 0.020, 0.0, 0.0, True))

    assert of.ledger.level >= before


def test_a_machine_that_gets_faster_during_a_stop_is_not_taken_for_cheaper_rounds_without_drafts() -> None:
    """A round of three drafts takes three without, before and after: that drafts are dear is not to be believed."""
    of = account()
    for _ in range(40):
        of.cost.more_rows(1, 3)
        of.observe(took(of, rows=3, tokens=3))
    drafted, plain = Shape(1, 3, 100.0, 300.0, ready=True), Shape(1, 1, 100.0, 100.0)
    while not of.ledger.stopped:
        of.ledger.settle(worth=1.0, took=3.0)
    while of.ledger.stopped:
        of.slept([(plain, 0.006)])
        if not of.unseen:
            of.observe_plain(plain, 0.006)

    assert of.cost.undrafted(1, 100.0) == pytest.approx(0.006, rel=0.05)
    assert of.cost.forecast(drafted).verify_s == pytest.approx(0.018, rel=0.1)
    assert not of.base_due(1, 100.0)
    for _ in range(16):
        of.observe(Took(drafted, 3, 0.018, 0.0, 0.0, True))
    assert of.base_due(1, 100.0)
