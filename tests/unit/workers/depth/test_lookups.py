"""How much prompt lookup brings each sequence, and whether models need not follow it."""

import pytest

from outrider.workers.depth.lookups import Lookups


def copies(
    sequence_id: int, lookups: Lookups, rounds: int = 24, *, tokens: float = 6.0, lookup_only: bool = False
) -> Lookups:
    """A sequence each of whose rounds should have so many looked-up tokens accepted."""
    lookups.add_sequence(sequence_id, lookup_only=lookup_only)
    for _ in range(rounds):
        lookups.observe(sequence_id, tokens)
    return lookups


def test_a_sequence_whose_text_is_looked_up_is_carried_until_a_few_rounds_go_without() -> None:
    lookups = copies(1, Lookups())
    carried = lookups.suffices(1)
    for _ in range(8):
        lookups.observe(1, 0.0)

    assert carried
    assert not lookups.suffices(1)


def test_models_can_add_to_what_short_copies_bring() -> None:
    assert not copies(1, Lookups(), 300, tokens=1.3).suffices(1)


def test_text_that_is_looked_up_often_is_common() -> None:
    assert not Lookups().common
    assert copies(1, Lookups(), 100).common


def test_a_new_sequence_is_like_the_mean() -> None:
    lookups = copies(1, Lookups(), 400)
    lookups.add_sequence(2, lookup_only=False)

    assert lookups.suffices(2)


def test_a_sequence_that_nothing_may_be_looked_up_for_is_not_carried() -> None:
    lookups = copies(1, Lookups(), 400)
    lookups.observe(3, 6.0)

    assert not lookups.suffices(3)


@pytest.mark.parametrize("lookup_only", [False, True])
def test_what_is_copied_where_no_model_may_draft_says_nothing_of_others(lookup_only: bool) -> None:
    lookups = copies(1, Lookups(), 400, lookup_only=lookup_only)
    lookups.add_sequence(2, lookup_only=False)

    assert lookups.suffices(1)
    assert lookups.suffices(2) == lookups.common == (not lookup_only)


def test_what_ended_is_forgotten() -> None:
    lookups = copies(1, Lookups())
    lookups.forget(1)

    assert not lookups.suffices(1)
    assert len(lookups) == 0
