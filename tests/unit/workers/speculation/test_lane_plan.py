"""For how many rounds depths hold."""

import pytest

from outrider.workers.engine.round import RUNNING, STOPPED, Round, Verdict, ints, offsets
from outrider.workers.speculation.known_times import Shape
from outrider.workers.speculation.lane_plan import LanePlan

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


@pytest.mark.parametrize(
    "other", [{"finish": STOPPED}, {"chunk": 8}, {"sequences": 2}], ids=["an end", "a prompt", "another sequence"]
)
def test_whatever_changes_the_rounds_ends_it(other: dict[str, int]) -> None:
    assert plan().goes_on(*ran(), 0.020)
    assert not plan().goes_on(*ran(**other), 0.020)


def test_losses_end_it_before_they_are_large_and_gains_make_up_for_them() -> None:
    losing, mixed = plan(), plan()
    rounds = next(number for number in range(99) if not losing.goes_on(*ran(tokens=1), 0.020))

    assert 2 <= rounds <= 5
    assert all(mixed.goes_on(*ran(tokens=1 + 2 * (number % 2)), 0.020) for number in range(99))


def test_where_little_is_left_to_lose_less_ends_it() -> None:
    lane, poor = plan(), plan()
    poor.renew(poor.plain, UNDRAFTED_S, 0.5)
    lost = [not each.goes_on(*ran(tokens=1), 0.035) for each in (lane, poor)]

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
    lane.pass_over(*ran(2, tokens=3), 0.020)
    lane.pass_over(*ran(2, tokens=1), 0.900)

    passed = lane.take_passed()

    assert (passed.rounds, passed.worth, passed.took) == (2, pytest.approx(4.0), pytest.approx(5.0))
    assert lane.take_passed().rounds == 0
