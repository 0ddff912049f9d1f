"""For how many rounds depths hold."""

from dataclasses import replace

import pytest

from outrider.workers.speculation.known_times import Shape
from outrider.workers.speculation.lane_plan import LanePlan, going_on
from outrider.workers.types.round import RUNNING, STOPPED, Round, Verdict, ints, offsets

UNDRAFTED_S = 0.010


def plan(sequences: int = 1) -> LanePlan:
    lane = LanePlan()
    lane.renew(Shape(sequences, sequences, 100.0, 100.0), UNDRAFTED_S)
    return lane


def ran(
    sequences: int = 1, *, rows: int = 3, tokens: int = 3, finish: int = RUNNING, chunk: int = 0
) -> tuple[Round, Verdict]:
    round = Round(
        sequence_ids=ints(range(sequences)),
        token_ids=ints([5] * (rows * sequences + chunk)),
        sample_counts=ints([rows] * sequences),
    )
    return round, Verdict(
        token_ids=ints([5] * tokens * sequences),
        token_offsets=offsets([tokens] * sequences),
        finish=ints([finish] * sequences),
    )


def test_they_hold_ever_longer_up_to_what_is_allowed() -> None:
    lane, holds = plan(), []
    for most in (16, 16, 16, 16, 16, 1, 16):
        lane.hold(most)
        holds.append(lane.holds)

    assert holds == [4, 8, 16, 16, 16, 1, 4]


def test_with_many_sequences_a_few_rounds_go_by_wherever_it_stands() -> None:
    lane = plan(64)
    lane.hold(3)
    few = lane.holds
    lane.hold(1)

    assert few == 4
    assert lane.holds == 1


def test_only_rounds_of_as_many_sequences_and_no_prompt_are_as_planned() -> None:
    assert plan().is_like(ran()[0])
    assert not plan().is_like(ran(chunk=8)[0])
    assert not plan().is_like(ran(2)[0])


def test_it_bends_to_about_as_many_sequences_where_drafts_pay() -> None:
    lane, stiff = plan(4), plan(4)
    lane.bends = True

    assert [number for number in range(7) if lane.bends_to(number, 0)] == [3, 4]
    assert not any(lane.bends_to(number, 1) or stiff.bends_to(number, 0) for number in range(7))


def test_once_bent_rounds_of_that_size_are_as_planned() -> None:
    lane = plan(4)
    lane.bend(lane.resized(3), 0.008)

    assert lane.is_like(ran(3)[0])
    assert not lane.is_like(ran(4)[0])
    assert lane.plain == Shape(3, 3, 75.0, 75.0)
    assert lane.time_of(ran(3)[0], 0.015).undrafted_s == 0.008


def test_those_go_on_that_said_something_and_are_not_at_their_end() -> None:
    assert going_on(*ran(3)) == 3
    assert going_on(*ran(3, finish=STOPPED)) == 0
    round, verdict = ran(3)
    assert going_on(replace(round, sample_counts=ints([3, 0, 3])), verdict) == 2


def test_where_it_is_unknown_what_a_round_would_have_taken_there_is_no_loss() -> None:
    lane = plan()

    assert all(lane.affords(*ran(tokens=1, chunk=8), 0.900, 0.0) for _ in range(9))


def test_losses_end_it_before_they_are_large_and_gains_make_up_for_them() -> None:
    losing, mixed = plan(), plan()
    rounds = next(number for number in range(99) if not losing.affords(*ran(tokens=1), 0.020, UNDRAFTED_S))

    assert 2 <= rounds <= 5
    assert all(mixed.affords(*ran(tokens=1 + 2 * (number % 2)), 0.020, UNDRAFTED_S) for number in range(99))


def test_where_little_is_left_to_lose_less_ends_it() -> None:
    lane, poor = plan(), plan()
    poor.renew(poor.plain, UNDRAFTED_S, 0.5)
    lost = [not each.affords(*ran(tokens=1), 0.035, UNDRAFTED_S) for each in (lane, poor)]

    assert lost == [False, True]


def test_the_time_of_a_round_is_told_with_its_drafts_beside_one_without() -> None:
    lane = plan()
    lane.draft_s = 0.003

    assert lane.time_of(ran()[0], 0.015) == (pytest.approx(0.018), UNDRAFTED_S)
    assert lane.time_of(ran(chunk=8)[0], 0.015) == (0.0, 0.0)
    assert LanePlan().time_of(ran()[0], 0.015) == (0.0, 0.0)


def test_rounds_that_are_passed_over_are_summed_and_a_disturbed_one_counts_for_no_more_than_it_may() -> None:
    lane = plan(2)
    lane.most = 3.0
    lane.pass_over(*ran(2, tokens=3), 0.020, UNDRAFTED_S)
    lane.pass_over(*ran(2, tokens=1), 0.900, UNDRAFTED_S)

    passed = lane.take_passed()

    assert (passed.rounds, passed.worth, passed.took) == (2, pytest.approx(4.0), pytest.approx(5.0))
    assert lane.take_passed().rounds == 0
