"""How much drafting may lose, and for how long it is disabled."""

import random

import pytest

from outrider.workers.depth.budget import MAX_WAIT, PROBE_COST, PROBE_WAIT, SHARE, Budget


def lose(budget: Budget, each: float, *, most: int = 10_000) -> int:
    """Rounds that take so much longer than they bring, until drafting is disabled."""
    for number in range(most):
        if budget.wait:
            return number
        budget.settle(1.0, 1.0 + each, verified=True, pending=False)
    return most


@pytest.mark.parametrize("each", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("size_class", [0, 2, 4])
def test_what_is_lost_until_it_is_disabled_is_what_the_bucket_held_above_its_reserve_and_1_percent(
    size_class: int, each: float
) -> None:
    budget = Budget.of(size_class)
    held = budget.level - budget.reserve
    rounds = lose(budget, each)

    assert not budget.enabled
    assert held <= rounds * (each - SHARE) + 1e-9 < held + each


def test_a_bucket_holds_no_more_than_its_cap_whatever_was_gained() -> None:
    budget = Budget.of(0)
    for _ in range(1000):
        budget.settle(5.0, 1.0, verified=True, pending=False)

    assert budget.level == budget.cap


def test_losses_within_1_percent_never_disable_it() -> None:
    assert lose(Budget.of(2), 0.9 * SHARE) == 10_000


@pytest.mark.parametrize("overdraft", [0.0, 1.0, 100.0])
def test_it_is_enabled_again_with_a_probe_once_that_can_be_paid_and_after_512_rounds_at_the_latest(
    overdraft: float,
) -> None:
    budget = Budget.of(0)
    budget.pay(budget.level + overdraft, verified=True)
    wait = budget.wait
    budget.skip(wait - 1)
    before = budget.enabled
    budget.skip(1)

    assert wait <= MAX_WAIT
    assert wait >= min(overdraft / SHARE, MAX_WAIT)
    assert not before
    assert budget.enabled
    assert budget.probes > 0
    assert budget.reason == ""


def test_while_its_reserve_lasts_there_are_probes_often_and_each_ends_once_it_lost_its_cost() -> None:
    budget, probes = Budget.of(0), 0
    lose(budget, 0.5)
    while budget.level > PROBE_COST:
        wait = budget.wait
        budget.skip(wait)
        spare, rounds = budget.spare, lose(budget, 0.9)
        probes += 1

        assert wait == PROBE_WAIT
        assert spare == pytest.approx(PROBE_COST)
        assert PROBE_COST <= rounds * (0.9 - SHARE) + 1e-9 < PROBE_COST + 0.9

    assert probes >= budget.reserve / (PROBE_COST + 0.9)


def test_what_a_probe_wins_above_the_reserve_is_no_reserve_again() -> None:
    budget = Budget.of(0)
    lose(budget, 0.5)
    budget.skip(budget.wait)
    for _ in range(4):
        budget.settle(2.0, 1.0, verified=True, pending=False)
    lose(budget, 0.5)

    assert budget.reserve - 0.5 < budget.level <= budget.reserve


def test_while_it_is_disabled_the_reason_is_told() -> None:
    budget = Budget.of(0)
    lose(budget, 0.5)

    assert budget.reason


def test_an_empty_bucket_counts_only_once_drafts_that_are_made_were_verified() -> None:
    """A probe may take all that there is to make its drafts: what they bring then is booked first."""
    won, lost = Budget.of(0), Budget.of(0)
    for budget, tokens in ((won, 9.0), (lost, 1.0)):
        while budget.spare > 0.0:
            budget.settle(1.0, 2.0, verified=True, pending=True)
        assert not budget.enabled, "no more drafts are made"
        assert not budget.wait, "those that are made are verified"
        budget.settle(tokens, 2.0, verified=True, pending=False)

    assert won.enabled
    assert lost.wait


def test_a_probe_that_wins_goes_on_and_one_that_loses_ends() -> None:
    won, lost = Budget.of(0), Budget.of(0)
    for _ in range(10):
        won.settle(3.0, 2.0, verified=True, pending=True)
        lost.settle(1.0, 1.1, verified=True, pending=True)

    assert won.probes > 0
    assert lost.probes == 0


def test_after_some_rounds_without_drafts_there_is_a_probe() -> None:
    budget = Budget.of(0)
    lose(budget, 0.1, most=10)
    assert budget.probes == 0
    for _ in range(10):
        budget.settle(1.0, 1.0, verified=False, pending=False)

    assert budget.probes > 0 or not budget.enabled


def test_drafts_that_take_many_rounds_from_the_first_on_are_no_disturbance() -> None:
    budget = Budget.of(0)
    budget.settle(3.0, 40.0, verified=True, pending=False)

    assert not budget.enabled


def test_plain_rounds_are_measured_from_time_to_time_or_given_up_for_a_while() -> None:
    budget, due = Budget.of(0), list[bool]()
    for number in range(2000):
        due.append(budget.plain_due)
        if budget.plain_due and number > 1000:
            budget.measured()
        else:
            budget.settle(2.0, 1.0, verified=True, pending=True)

    assert 0 < sum(due[:1000]) < 200, "no plain rounds could be had"
    assert 0 < sum(due[1001:]) < 20


def test_the_speedup_shown_is_that_of_late_and_goes_to_1_while_it_is_disabled() -> None:
    budget = Budget.of(0)
    for _ in range(400):
        budget.settle(3.0, 2.0, verified=True, pending=True)
    assert budget.speedup == pytest.approx(1.5, rel=0.01)
    budget.skip(400)

    assert budget.speedup == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_over_any_window_no_more_is_lost_than_the_cap_and_1_percent_but_for_a_rounds_overshoot(seed: int) -> None:
    rng, budget = random.Random(seed), Budget.of(2)
    balance = peak = worst = 0.0
    for _ in range(5000):
        if budget.wait:
            budget.skip(1)
            balance += SHARE
        else:
            tokens, took = (rng.choice((1.0, 1.0, 1.0, 2.5)), 1.5) if budget.enabled else (1.0, 1.3)
            pending = budget.enabled
            budget.settle(tokens, took, verified=True, pending=pending)
            balance += SHARE + tokens - took
            worst = max(worst, took - tokens)
        peak = max(peak, balance)
        assert peak - balance <= budget.cap + 2 * worst
