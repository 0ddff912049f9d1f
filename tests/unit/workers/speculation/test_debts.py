"""Following a prompt is booked in full, spread over what its sequence may say, whenever that ends."""

import pytest

from outrider.workers.engine.request import SpeculationFigures
from outrider.workers.speculation.account import Account
from outrider.workers.speculation.cost import RoundCost
from outrider.workers.speculation.debts import Debts
from outrider.workers.speculation.known_times import Shape
from outrider.workers.speculation.ledger import CAP, Ledger


def test_a_debt_is_booked_token_by_token_and_the_rest_at_the_end() -> None:
    debts = Debts()
    debts.meet(1, room=100)
    debts.owe(1, 0.5)

    assert debts.due(10.0) == pytest.approx(0.05)
    assert debts.forget(1) == pytest.approx(0.45)
    assert debts.due(10.0) == 0.0
    assert debts.forget(1) == 0.0


def test_a_prompt_read_in_parts_is_one_debt_and_others_are_booked_beside_it() -> None:
    debts = Debts()
    for sequence_id, room in ((1, 10), (2, 20)):
        debts.meet(sequence_id, room)
    debts.owe(1, 0.1)
    debts.owe(1, 0.1)
    debts.owe(2, 0.2)

    booked = sum(debts.due(1.0) for _ in range(10))
    assert booked == pytest.approx(0.2 + 0.1)
    assert debts.forget(1) == pytest.approx(0.0)
    assert booked + sum(debts.due(1.0) for _ in range(10)) == pytest.approx(0.4)


def test_nothing_is_booked_of_who_was_never_met() -> None:
    debts = Debts()
    debts.owe(7, 1.0)

    assert debts.due(1.0) == 0.0


def account_with_rounds() -> Account:
    account = Account(RoundCost(), SpeculationFigures())
    while not account.ledger.stopped:
        account.ledger.settle(1.0, 3.0)
    for _ in range(50):
        account.observe_plain(Shape(1, 1, 100.0, 100.0), 0.010)
    return account


def test_what_following_took_is_taken_from_the_ledger_while_nobody_drafts_too() -> None:
    account, idle = account_with_rounds(), account_with_rounds()
    account.meet(1, room=40)
    account.owe(1, 0.020)  # two rounds
    for each in (account, idle):
        for _ in range(20):
            each.observe_plain(Shape(1, 1, 100.0, 100.0), 0.010)
    assert idle.ledger.level - account.ledger.level == pytest.approx(1.0, rel=0.1)

    account.forget(1)
    assert idle.ledger.level - account.ledger.level == pytest.approx(2.0, rel=0.1)


def test_a_debt_stops_speculation_and_is_forgotten_beyond_the_cap() -> None:
    ledger = Ledger()
    ledger.pay(1000.0)

    assert ledger.stopped
    assert ledger.level == -CAP
