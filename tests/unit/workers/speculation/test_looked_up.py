"""What prompt lookup carries of the live sequences."""

import pytest

from outrider.workers.speculation.looked_up import LookedUps


def carried(sequence_id: int, found: LookedUps, rounds: int = 24) -> LookedUps:
    """A sequence whose every round has eight looked-up drafts, of which six should stand."""
    found.meet(sequence_id)
    for _ in range(rounds):
        found.add(sequence_id, 8, 6.0)
    return found


def test_a_sequence_whose_drafts_are_looked_up_is_carried_until_a_few_rounds_go_without() -> None:
    found = carried(1, LookedUps())
    assert found.carries(1)
    assert found.of([1]) == pytest.approx((1.0, 8.0, 6.0), rel=0.05)

    for _ in range(4):
        found.add(1, 0, 0.0)

    assert not found.carries(1)


def test_what_copies_bring_in_short_pieces_models_can_add_to() -> None:
    found = LookedUps()
    found.meet(1)
    for _ in range(300):
        found.add(1, 2, 1.3)

    assert found.of([1]).share == pytest.approx(1.0, abs=0.01)
    assert not found.carries(1)
    assert found.common


def test_it_is_told_when_lookup_begins_and_ceases_to_carry_a_sequence() -> None:
    found = LookedUps()
    found.meet(1)
    turned = [found.add(1, rows, 0.75 * rows) for rows in (0, 8, 8, 8, 8, 0, 0, 0, 0)]

    assert sum(turned) == 2
    assert any(turned[1:5])
    assert any(turned[5:])


def test_drafts_that_are_looked_up_often_are_common() -> None:
    found = LookedUps()
    assert not found.common

    assert carried(1, found, rounds=100).common


def test_a_new_sequence_is_as_all_are() -> None:
    found = carried(1, LookedUps(), rounds=400)
    found.meet(2)

    assert found.carries(2)
    assert found.of([1, 2]).tokens == pytest.approx(12.0, rel=0.2)


def test_one_that_nothing_may_be_looked_up_for_is_not_carried_whatever_others_are() -> None:
    found = carried(1, LookedUps(), rounds=400)
    found.add(3, 8, 6.0)

    assert not found.carries(3)
    assert found.of([3]) == (0.0, 0.0, 0.0)


def test_what_ended_is_forgotten() -> None:
    found = carried(1, LookedUps())
    found.forget(1)

    assert not found.carries(1)


def test_where_nothing_is_ever_found_nobody_is_carried() -> None:
    found = LookedUps()
    found.meet(1)
    for _ in range(10):
        found.add(1, 0, 0.0)

    assert found.of([1]) == (0.0, 0.0, 0.0)


def test_what_is_copied_where_no_model_drafts_says_nothing_of_new_sequences() -> None:
    fleets = [LookedUps(), LookedUps()]
    for found, alone in zip(fleets, (False, True), strict=True):
        found.meet(1, alone=alone)
        for _ in range(400):
            found.add(1, 8, 7.0)
        found.meet(2)

    assert [found.carries(1) for found in fleets] == [True, True]
    assert [found.carries(2) for found in fleets] == [True, False]
    assert [found.common for found in fleets] == [True, False]
