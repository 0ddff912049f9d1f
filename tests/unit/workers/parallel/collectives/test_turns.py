"""Two lanes run in turns, one going on where the other would wait, and end together."""

import threading
from collections.abc import Callable, Iterator

import pytest

from outrider.workers.parallel.collectives.collectives import ExchangeBrokenError
from outrider.workers.parallel.collectives.turns import LaneTurns


@pytest.fixture
def turns() -> Iterator[LaneTurns]:
    turns = LaneTurns()
    yield turns
    turns.close()


def _lane(turns: LaneTurns, name: str, exchanges: int, seen: list[str]) -> Callable[[], str]:
    def work() -> str:
        for number in range(exchanges):
            seen.append(f"{name}{number}")
            turns.hand_over()
        return name

    return work


def test_the_first_lane_begins_and_both_take_turns(turns: LaneTurns) -> None:
    seen: list[str] = []

    assert turns.both(_lane(turns, "a", 3, seen), _lane(turns, "b", 3, seen)) == ("a", "b")
    assert seen == ["a0", "b0", "a1", "b1", "a2", "b2"]


def test_a_lane_whose_other_has_ended_goes_on_alone(turns: LaneTurns) -> None:
    seen: list[str] = []

    turns.both(_lane(turns, "a", 1, seen), _lane(turns, "b", 3, seen))

    assert seen == ["a0", "b0", "b1", "b2"]


def test_only_one_lane_runs_at_a_time(turns: LaneTurns) -> None:
    running, most = [0], [0]

    def work() -> None:
        for _ in range(200):
            running[0] += 1
            most[0] = max(most[0], running[0])
            threading.Event().wait(0.0001)
            running[0] -= 1
            turns.hand_over()

    turns.both(work, work)

    assert most == [1]


@pytest.mark.parametrize("failing", [0, 1])
def test_a_lane_that_fails_ends_both_with_its_error(turns: LaneTurns, failing: int) -> None:
    heard: list[str] = []

    def fails() -> None:
        turns.hand_over()
        raise ExchangeBrokenError("rank 3 is gone")

    def goes_on() -> None:
        try:
            for _ in range(5):
                turns.hand_over()
        except ExchangeBrokenError as error:
            heard.append(str(error))
            raise

    lanes = [goes_on, goes_on]
    lanes[failing] = fails
    with pytest.raises(ExchangeBrokenError, match=r"^rank 3 is gone$"):
        turns.both(*lanes)

    assert heard == ["the other lane of this rank has failed: rank 3 is gone"]
    assert turns.both(lambda: 1, lambda: 2) == (1, 2), "the next two are none the worse"


def test_a_second_lane_does_not_begin_after_a_failed_first(turns: LaneTurns) -> None:
    began: list[int] = []

    def fails() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        turns.both(fails, lambda: began.append(1))

    assert not began


def test_outside_of_lanes_nothing_is_handed_over(turns: LaneTurns) -> None:
    seen: list[str] = []
    turns.hand_over()
    turns.both(_lane(turns, "a", 2, seen), _lane(turns, "b", 2, seen))
    turns.hand_over()

    assert seen == ["a0", "b0", "a1", "b1"]


def test_no_thread_is_left_behind() -> None:
    turns = LaneTurns()
    turns.both(lambda: None, lambda: None)
    turns.close()
    turns.close()

    assert not [thread for thread in threading.enumerate() if thread.name.startswith("second-lane")]
