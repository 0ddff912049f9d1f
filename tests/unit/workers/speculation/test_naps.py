"""Rounds that go by unlooked."""

from outrider.workers.speculation.known_times import Shape
from outrider.workers.speculation.naps import Naps

FIRST = Shape(2, 2, 200.0, 200.0)


def test_as_many_rounds_go_by_as_were_allowed_and_are_told_afterwards() -> None:
    naps = Naps()
    naps.begin(3, FIRST)
    went_by = [naps.add(2, 0.010 + number) for number in range(5)]
    told = list(naps.end())

    assert went_by == [True, True, True, False, False]
    assert [round_s for _, round_s in told] == [0.010, 1.010, 2.010]
    assert [shape.context for shape, _ in told] == [200.0, 202.0, 204.0]
    assert {shape.rows for shape, _ in told} == {2}


def test_rounds_of_other_sequences_do_not() -> None:
    naps = Naps()
    naps.begin(3, FIRST)

    assert not naps.add(3, 0.010)
    assert naps.add(2, 0.010)


def test_nothing_goes_by_before_that_is_allowed_or_after_it_was_told() -> None:
    naps = Naps()
    before = naps.add(0, 0.010)
    naps.begin(3, FIRST)
    naps.add(2, 0.010)
    first, second = list(naps.end()), list(naps.end())

    assert not before
    assert not naps.add(2, 0.010)
    assert (len(first), len(second)) == (1, 0)
