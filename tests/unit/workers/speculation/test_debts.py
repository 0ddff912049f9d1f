"""Following a prompt is booked in full, spread over what its sequence may say, whenever that ends."""

import pytest

from outrider.workers.speculation.account import Account, Took
from outrider.workers.speculation.cost import RoundCost
from outrider.workers.speculation.debts import Debts
from outrider.workers.speculation.known_times import Shape
from outrider.workers.speculation.ledger import SHARE, Ledger
from outrider.workers.types.counters import SpeculationFigures


def test_a_debt_is_booked_token_by_token_and_the_rest_at_the_end() -> None:
    debts = Debts()
    debts.meet(1, room=100)
    debts.owe(1, 10, 0.5)

    assert debts.due(10.0) == pytest.approx(0.05)
    assert debts.forget(1) == pytest.approx(0.45)
    assert debts.due(10.0) == 0.0
    assert debts.forget(1) == 0.0


def test_no_debt_is_booked_beyond_what_it_is_however_much_is_said_before_its_end_is_heard_of() -> None:
    debts = Debts()
    for sequence_id, owed_s in ((1, 0.1), (2, 0.2)):
        debts.meet(sequence_id, room=10)
        debts.owe(sequence_id, 10, owed_s)

    assert debts.due(80.0) == pytest.approx(0.3)
    assert debts.forget(1) + debts.forget(2) == pytest.approx(0.0)


def test_a_prompt_read_in_parts_is_one_debt_and_others_are_booked_beside_it() -> None:
    debts = Debts()
    for sequence_id, room in ((1, 10), (2, 20)):
        debts.meet(sequence_id, room)
    debts.owe(1, 10, 0.1)
    debts.owe(1, 10, 0.1)
    debts.owe(2, 10, 0.2)

    booked = sum(debts.due(1.0) for _ in range(10))
    assert booked == pytest.approx(0.2 + 0.1)
    assert debts.forget(1) == pytest.approx(0.0)
    assert booked + sum(debts.due(1.0) for _ in range(10)) == pytest.approx(0.4)


def test_nothing_is_booked_of_who_was_never_met() -> None:
    debts = Debts()
    debts.owe(7, 10, 1.0)

    assert debts.due(1.0) == 0.0


def test_what_a_prompt_will_take_is_foreseen_by_those_before_it() -> None:
    debts = Debts()
    assert debts.with_prompt(100) == 0.0  # nobody knows

    debts.owe(7, 10, 0.1, ends=True)
    assert debts.with_prompt(100) == pytest.approx(1.0)
    debts.owe(7, 10, 0.2, ends=True)
    assert 1.0 < debts.with_prompt(100) < 2.0


def test_what_is_pledged_counts_until_it_is_owed_and_what_is_owed_until_it_is_booked() -> None:
    debts = Debts()
    debts.owe(7, 10, 0.1, ends=True)
    debts.meet(1, room=100)
    debts.pledge(1, 50)
    assert debts.with_prompt(0) == pytest.approx(0.5)

    debts.owe(1, 20, 0.2)
    assert debts.with_prompt(0) == pytest.approx(0.5)
    debts.owe(1, 20, 0.2, ends=True)  # the rest was cached
    assert debts.with_prompt(0) == pytest.approx(0.4)
    debts.due(50.0)
    assert debts.with_prompt(0) == pytest.approx(0.2)
    debts.forget(1)
    assert debts.with_prompt(0) == 0.0


def test_a_pledge_is_off_where_the_sequence_never_begins() -> None:
    debts = Debts()
    debts.owe(7, 10, 0.1, ends=True)
    debts.meet(1, room=100)
    debts.pledge(1, 50)
    debts.forget(1)

    assert debts.with_prompt(0) == 0.0


def drafted(account: Account) -> None:
    """A round whose drafts brought what they took."""
    account.observe(Took(Shape(1, 2, 100.0, 200.0, 1, 1, 2), 2, 0.018, 0.002, 0.0, own=True))


def accounts() -> tuple[Account, Account]:
    made = Account(RoundCost(), SpeculationFigures()), Account(RoundCost(), SpeculationFigures())
    for account in made:
        for _ in range(50):
            account.observe(Took(Shape(1, 1, 100.0, 100.0), 1, 0.010, 0.0, 0.0, own=True))
            drafted(account)
        account.ledger.level = 20.0
    return made


def test_what_following_took_is_taken_from_the_ledger_by_the_tokens_said_and_the_rest_at_the_end() -> None:
    account, idle = accounts()
    account.meet(1, room=80)
    account.owe(1, 10, 0.040)
    undrafted_s = account.cost.undrafted(1, 100.0)
    for each in (account, idle):
        for _ in range(20):
            drafted(each)
    assert idle.ledger.level - account.ledger.level == pytest.approx(0.020 / undrafted_s, rel=0.1)

    account.forget(1)
    assert idle.ledger.level - account.ledger.level == pytest.approx(0.040 / undrafted_s, rel=0.1)


def test_a_debt_stops_speculation_and_is_forgotten_beyond_what_there_is_and_in_a_stop() -> None:
    ledger = Ledger()
    ledger.pay(1000.0)
    assert ledger.stopped
    assert ledger.level == 0.0

    ledger.earn(1.0)
    ledger.pay(1000.0)
    assert ledger.level == SHARE
