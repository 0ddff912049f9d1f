"""Which waiting request goes next, and how long a new one would wait."""

import heapq
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.cluster.gateway.requests.fair_queue import FairQueue, Turn, fair_share

HELD_S = 2.0


class Replicas:
    """Callers with more to do than there is room for; each place is held for HELD_S on average."""

    def __init__(self, places: int, seed: int = 0) -> None:
        self.now = 0.0
        self.turns = FairQueue(lambda: self.now)
        self.turns.set_places(places)
        self.started: list[Turn] = []
        self.asked_at: dict[int, float] = {}
        self._dice = random.Random(seed)
        self._ends: list[tuple[float, int, Turn]] = []

    def ask(self, caller: str, outputs: int = 1, *, resumed: bool = False) -> Turn:
        turn = Turn(caller, outputs)
        turn.start = lambda: self._start(turn)
        (self.turns.resume if resumed else self.turns.enqueue)(turn)
        return turn

    def _start(self, turn: Turn) -> None:
        self.started.append(turn)
        heapq.heappush(self._ends, (self.now + HELD_S * self._dice.uniform(0.5, 1.5), len(self.started), turn))

    def end_one(self) -> None:
        self.now, _, turn = heapq.heappop(self._ends)
        self.turns.release(turn)

    def holding(self, caller: str) -> int:
        return sum(turn.outputs for _, _, turn in self._ends if turn.caller == caller)


@given(
    places=st.integers(1, 20),
    asks=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 5)), min_size=1, max_size=60),
    seed=st.integers(0, 99),
)
def test_a_place_is_free_only_where_no_request_waits_and_a_callers_own_go_in_order(
    places: int, asks: list[tuple[str, int]], seed: int
) -> None:
    replicas = Replicas(places, seed)
    turns = [replicas.ask(caller, outputs) for caller, outputs in asks]

    for _ in asks:
        held = sum(replicas.holding(caller) for caller in "abc")
        assert held >= places or not replicas.turns.waiting
        replicas.end_one()

    assert not replicas.turns.waiting
    for caller in "abc":
        own = [turn for turn in turns if turn.caller == caller]
        assert [turn for turn in replicas.started if turn.caller == caller] == own


@pytest.mark.parametrize("places", [1, 2, 16])
def test_of_two_callers_with_enough_to_do_each_gets_half_however_much_the_other_asks(places: int) -> None:
    replicas = Replicas(places)
    for _ in range(100 * places):
        replicas.ask("heavy")
    for _ in range(places):
        replicas.ask("light")

    for _ in range(50 * places):
        replicas.end_one()
        if replicas.turns.waiting < 100 * places:
            replicas.ask("light")

    started = replicas.started[2 * places :]
    light = sum(turn.caller == "light" for turn in started)
    assert 0.45 <= light / len(started) <= 0.55


def test_many_outputs_go_as_soon_as_one_would_have_room() -> None:
    replicas = Replicas(4)
    first = replicas.ask("a")
    replicas.ask("a", outputs=100)
    replicas.ask("b")

    assert [turn.outputs for turn in replicas.started] == [1, 100]
    replicas.turns.release(first)
    assert [turn.outputs for turn in replicas.started] == [1, 100], "its places are all held"


def test_what_waits_is_said_in_tokens_of_all_outputs_and_by_who_has_waited_longest() -> None:
    replicas = Replicas(1)
    replicas.turns.enqueue(Turn("a", 1, prompt_tokens=100))
    assert (replicas.turns.waiting_tokens, replicas.turns.oldest_wait_s) == (0, 0.0)

    first = Turn("b", 2, prompt_tokens=10)
    replicas.turns.enqueue(first)
    replicas.now = 3.0
    replicas.turns.enqueue(Turn("a", 1, prompt_tokens=5))

    assert (replicas.turns.waiting_tokens, replicas.turns.oldest_wait_s) == (25, 3.0)
    replicas.turns.release(first)
    assert (replicas.turns.waiting_tokens, replicas.turns.oldest_wait_s) == (5, 0.0)


def test_who_leaves_before_its_turn_has_none() -> None:
    replicas = Replicas(1)
    replicas.ask("a")
    gone, next_one = replicas.ask("a"), replicas.ask("a")

    replicas.turns.release(gone)
    replicas.end_one()

    assert replicas.started[1:] == [next_one]


def test_who_takes_places_goes_at_once_and_others_wait_for_them() -> None:
    replicas = Replicas(1)
    replicas.ask("a")
    resumed = Turn("a", 2)
    replicas.turns.resume(resumed)
    waiting = replicas.ask("b")

    replicas.end_one()
    assert waiting not in replicas.started
    replicas.turns.release(resumed)
    assert waiting in replicas.started


def test_a_caller_that_always_resumes_gets_no_more_than_its_share_while_others_wait() -> None:
    replicas = Replicas(4)

    for _ in range(8):
        replicas.ask("greedy", resumed=True)
    assert replicas.holding("greedy") == 8, "no other caller waits"
    for _ in range(40):
        replicas.ask("light")
    begun = len(replicas.started)
    for _ in range(40):
        replicas.end_one()
        replicas.ask("greedy", resumed=True)

    light = sum(turn.caller == "light" for turn in replicas.started[begun:])
    assert light >= 0.45 * (len(replicas.started) - begun)


def test_no_request_waits_where_there_is_room_and_nothing_is_said_of_what_is_not_known() -> None:
    replicas = Replicas(4)
    assert replicas.turns.wait_s("a") == 0
    for _ in range(9):
        replicas.ask("a")
    assert replicas.turns.wait_s("a") == 0, "nothing has ended yet"
    assert replicas.turns.ended_in_s(1) is None
    for _ in range(6):
        replicas.end_one()
    assert replicas.turns.wait_s("a") == 0


@pytest.mark.parametrize("waiting", [1, 10, 100])
@pytest.mark.parametrize("places", [4, 32])
def test_the_forecast_of_a_wait_is_about_what_it_is(places: int, waiting: int) -> None:
    replicas = Replicas(places)
    for _ in range(4 * places + waiting):
        replicas.ask("a")
    for _ in range(3 * places):
        replicas.end_one()
    forecast, asked_at = replicas.turns.wait_s("a"), replicas.now

    turn = replicas.ask("a")
    while turn not in replicas.started:
        replicas.end_one()

    assert replicas.now - asked_at == pytest.approx(forecast, rel=0.25, abs=1.5 * HELD_S / places)


def test_what_another_waits_for_does_not_lengthen_a_callers_wait() -> None:
    replicas = Replicas(10)
    for _ in range(500):
        replicas.ask("heavy")
    for _ in range(100):
        replicas.end_one()

    assert replicas.turns.wait_s("heavy") > 70
    assert replicas.turns.wait_s("light") < 1


def test_a_place_is_not_forecast_before_those_that_hold_them_are_due() -> None:
    replicas = Replicas(8)
    for _ in range(8):
        replicas.ask("a")
    for _ in range(8):
        replicas.end_one()
    for _ in range(8):
        replicas.ask("a")

    assert replicas.turns.wait_s("a") == pytest.approx(HELD_S, rel=0.3), "all have just begun"


def test_who_holds_less_than_its_share_is_due_and_who_waits_already_is_not() -> None:
    replicas = Replicas(4)
    for _ in range(9):
        replicas.ask("heavy")

    assert replicas.turns.is_due("light")
    assert not replicas.turns.is_due("heavy")
    for _ in range(2):
        replicas.ask("light")
    assert not replicas.turns.is_due("light")


def test_of_two_that_share_the_places_each_may_have_its_share_waiting_and_of_one_alone_none() -> None:
    replicas = Replicas(8)
    for _ in range(12):
        replicas.ask("heavy")
    assert not replicas.turns.is_due("heavy"), "no other token takes what it leaves"
    for _ in range(4):
        replicas.ask("light")
    for _ in range(8):
        replicas.end_one()
    assert (replicas.holding("heavy"), replicas.holding("light")) == (4, 4)

    for _ in range(4):
        assert replicas.turns.is_due("light")
        replicas.ask("light")
    assert not replicas.turns.is_due("light")


def test_a_wait_grows_with_the_time_that_places_are_held_while_nothing_has_ended() -> None:
    replicas = Replicas(4)
    for _ in range(4 + 7):
        replicas.ask("a")

    replicas.now = 3.0

    assert replicas.turns.wait_s("a") == pytest.approx(3.0 * 8 / 4)


@given(st.integers(0, 50), st.lists(st.integers(0, 50), max_size=8))
def test_a_fair_share_uses_all_that_is_demanded_and_there(places: int, demands: list[int]) -> None:
    share = fair_share(places, demands)

    used = sum(min(demand, share) for demand in demands)
    assert used == pytest.approx(min(places, sum(demands)))
