"""The floor: however acceptance behaves, so much is lost and no more."""

import random

import pytest

from outrider.workers.speculation.ledger import CAP, SHARE, Ledger

WORST = 4.0  # undrafted rounds that a drafted one takes at most, in these tests


def test_losses_empty_it_and_time_fills_it_again() -> None:
    ledger = Ledger()
    while not ledger.stopped:
        ledger.settle(worth=1.0, took=1.5)
    rounds = 0
    while ledger.stopped:
        ledger.settle(worth=1.0, took=1.0)
        rounds += 1

    assert rounds > 100


def test_gains_are_not_saved_beyond_the_cap() -> None:
    ledger = Ledger()
    for _ in range(1000):
        ledger.settle(worth=3.0, took=1.0)

    assert ledger.level == CAP


def test_what_is_not_there_cannot_be_risked() -> None:
    ledger = Ledger()

    assert ledger.affords(1.0)
    assert not ledger.affords(CAP + 1)


def test_many_sequences_start_with_less_since_they_tell_sooner_what_drafts_bring() -> None:
    assert Ledger(size=0).level > Ledger(size=4).level > 0.0
    assert Ledger(size=4).level == Ledger(size=9).level


def test_what_may_be_lost_to_measuring_is_a_small_share_of_all_time() -> None:
    ledger = Ledger()
    while ledger.spend(0.5):
        pass
    assert not ledger.affords_to_measure(0.5)
    wait = ledger.until_affords_to_measure(0.5)
    for _ in range(wait):
        assert not ledger.spend(0.5)
        ledger.settle(worth=1.0, took=1.0)

    assert wait >= 50
    assert ledger.spend(0.5)
    assert ledger.until_affords_to_measure(0.0) == 0


def test_what_is_dearer_than_all_that_may_be_saved_for_it_is_measured_once_that_is_saved() -> None:
    ledger = Ledger()
    assert ledger.spend(50.0)
    assert not ledger.spend(50.0)
    wait = ledger.until_affords_to_measure(50.0)
    for _ in range(wait + 1):
        ledger.earn(1.0)

    assert ledger.spend(50.0)


@pytest.mark.parametrize("seed", range(20))
def test_over_any_stretch_the_loss_is_bounded(seed: int) -> None:
    """An adversary sets what every speculated round brings, with any plan it likes."""
    rng, ledger = random.Random(seed), Ledger()
    balance, peak, earned = 0.0, 0.0, 0.0
    generous = True
    for _ in range(5000):
        generous = generous if rng.random() < 0.98 else not generous
        worth, took = 1.0, 1.0
        if not ledger.stopped:
            took = rng.uniform(1.0, WORST)
            worth = took * rng.uniform(1.0, 1.5) if generous else 1.0
        ledger.settle(worth, took)
        balance += worth - took
        earned += SHARE * worth
        peak = max(peak, balance + earned)

        assert peak - (balance + earned) <= CAP + WORST


def test_the_more_sequences_there_are_the_less_is_risked_at_first() -> None:
    assert [Ledger(size).level for size in range(6)] == pytest.approx([24.0, 12.0, 6.0, 3.0, 1.5, 1.5])
    assert [Ledger(size).affords_to_measure(1.5) for size in (0, 2, 4)] == [True, True, False]
