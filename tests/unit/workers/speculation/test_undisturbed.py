"""Rounds without drafts in a row, over all lanes."""

from outrider.workers.speculation.base_rounds import BURST, CALM, FEWEST
from outrider.workers.speculation.known_times import Shape
from outrider.workers.speculation.undisturbed import Undisturbed

PLAIN = Shape(1, 1, 100.0, 100.0)


def test_they_are_as_many_as_it_takes_in_every_lane_and_the_first_are_passed_over() -> None:
    rounds = Undisturbed()
    rounds.want(0, True)
    rounds.want(1, False)
    for number in range(CALM + 2 * BURST):
        assert rounds.missing
        rounds.add([(PLAIN, float(number))])

    assert rounds.missing == 0
    assert [round_s for _, round_s in rounds.take()] == [float(number) for number in range(CALM, CALM + 2 * BURST)]


def test_of_the_size_that_is_wanted_there_are_enough_whatever_other_lanes_run() -> None:
    rounds, alone = Undisturbed(), 0
    rounds.want(0, True, sequences=7)
    while rounds.missing:
        rounds.add([(PLAIN, 0.010), (PLAIN, 0.010), (Shape(7, 7, 700.0, 700.0), 0.020)])
        alone += 1
        assert alone < 99

    assert sum(shape.sequences == 7 for shape, _ in rounds.take()) >= FEWEST


def test_what_was_taken_is_wanted_no_longer_until_lanes_ask_again() -> None:
    rounds = Undisturbed()
    for lane in (0, 1):
        rounds.want(lane, True)
    rounds.take()

    assert not rounds.wanted
    rounds.add([(PLAIN, 0.010)])
    assert rounds.take() == []


def test_rounds_of_a_burst_that_came_to_nothing_are_no_part_of_the_next() -> None:
    rounds = Undisturbed()
    rounds.want(0, True)
    for _ in range(CALM + 2):
        rounds.add([(PLAIN, 5.0)])
    rounds.leave(0)
    rounds.want(0, True)

    assert rounds.missing == CALM + BURST


def test_few_long_rounds_tell_as_much_as_many_short_ones() -> None:
    missing = []
    for takes_s in (0.0, 0.0005, 0.002, 0.010):
        rounds = Undisturbed()
        rounds.want(0, True, takes_s)
        missing.append(rounds.missing)

    assert missing == [CALM + BURST, CALM + BURST, 2 + 6, 1 + FEWEST]
