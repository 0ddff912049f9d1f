"""Depths by the price of time, between made-up texts and machines: never far from the best, never below off."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from grids import chequered
from recorders import DEPTH
from simulation import Auto, Place, Score, Simulation, Static, Text

from outrider.workers.speculation.acceptance import Kind
from outrider.workers.speculation.auto_depth import AutoDepth
from outrider.workers.speculation.known_times import Shape
from outrider.workers.speculation.ledger import CAP, SHARE

Accept = Callable[[int, int], float]  # place, position -> probability


@dataclass(frozen=True)
class MadeUp:
    """A machine: a fixed part, a part per row, and a part per draft step that the sequences share."""

    base: float
    per_row: float
    per_step: float
    slower_from: int = 10**9  # the round from which drafting steps take ten times as long
    noisy: bool = True

    def seconds(self, shape: Shape) -> tuple[float, float]:
        step = self.per_step * (10 if _ROUND[0] >= self.slower_from else 1)
        _ROUND[0] += 1
        following = 0.05 * self.per_step * shape.followed
        return self.base + self.per_row * shape.rows, 0.2 + step * shape.steps + 0.1 * step * shape.drafts + following

    def noise(self, rng: np.random.Generator) -> float:
        return (1 + 0.1 * rng.random()) * (4 if rng.random() < 0.01 else 1) if self.noisy else 1.0


_ROUND = [0]
CHEAP, SCOUT, STEEP = MadeUp(7, 0.6, 0.6), MadeUp(6, 1.7, 1.0), MadeUp(1, 6, 6)
MACHINES = {"cheap": CHEAP, "scout": SCOUT, "steep": STEEP}
BATCHES = {"1": 1, "8": 8}


def texts(accept: Accept, *, count: int = 20, length: int = 400, lead: float | None = 1.0, seed: int = 0) -> list[Text]:
    """Texts whose drafts stand by `accept`. A `lead` of None tells what will stand as well as scout's leads do."""
    rng, made = random.Random(seed), []
    for _ in range(count):
        places = []
        for place in range(length):
            stands = [rng.random() < accept(place, position) for position in range(DEPTH)]
            accepted = next((n for n, stood in enumerate(stands) if not stood), DEPTH)
            leads = [lead if lead is not None else _telling(stood, rng) for stood in stands]
            places.append(Place(accepted, leads))
        made.append(Text(Kind("mtp", 1), places))
    return made


def _telling(stood: bool, rng: random.Random) -> float:
    return rng.expovariate(0.4) if stood else rng.expovariate(1.5)


def always(probability: float) -> Accept:
    return lambda place, position: probability


def falling(place: int, position: int) -> float:
    return (0.9, 0.6, 0.3, 0.2, 0.1, 0.1, 0.1, 0.1)[position]


def simulate(policy: Auto | Static, machine: MadeUp, of: list[Text], batch: int, rounds: int, settle: int = 0) -> Score:
    """What came of the rounds after the first `settle`."""
    _ROUND[0] = 0
    simulation = Simulation(policy, machine, of)
    before = simulation.run(batch, settle)
    tokens, seconds = before.tokens, before.seconds
    score = simulation.run(batch, rounds)
    score.tokens -= tokens
    score.seconds -= seconds
    return score


@pytest.mark.parametrize(
    ("accept", "machine", "batch"),
    chequered(
        {"none": always(0.02), "half": always(0.5), "0.7": always(0.7), "0.92": always(0.92), "falling": falling},
        MACHINES,
        BATCHES,
    ),
)
def test_it_comes_near_the_best_fixed_depth_and_is_never_slower_than_none(
    machine: MadeUp, accept: Accept, batch: int
) -> None:
    rounds, of = 2000 if batch == 1 else 600, texts(accept)
    fixed = [simulate(Static(depth), machine, of, batch, rounds).speed for depth in (0, 1, 2, 3, 4, 6)]

    speed = simulate(Auto(), machine, of, batch, rounds, settle=150).speed

    assert speed >= 0.95 * max(fixed)
    assert speed >= 0.97 * fixed[0]


def test_confidence_that_tells_makes_it_faster_than_confidence_that_does_not() -> None:
    """Where drafts are cheap to make, and dear to verify."""
    machine = MadeUp(6, 2.0, 0.2)
    telling, mute = (
        sum(
            simulate(Auto(), machine, texts(always(0.6), lead=lead, seed=seed), 1, 2000, settle=150).speed
            for seed in range(4)
        )
        for lead in (None, 1.0)
    )

    assert telling > 1.01 * mute


def test_it_turns_itself_on_and_off_again_as_acceptance_changes() -> None:
    """Texts of a thousand tokens that are hopeless, then easy, then hopeless."""

    def changing(place: int, position: int) -> float:
        return 0.92 if 1000 <= place < 4000 else 0.02

    auto, of = Auto(), texts(changing, count=1, length=6000)
    simulation = Simulation(auto, SCOUT, of)
    verified: Counter[str] = Counter()
    while simulation._started < 2:
        place = simulation._running[0].place if simulation._running else 0
        part = "off" if place < 1000 else "on" if 1300 <= place < 4000 else "off again" if place >= 4300 else "between"
        before = simulation.score.verified, simulation.score.rounds
        simulation.run(1, 1)
        verified[part] += simulation.score.verified - before[0]
        verified[part + " rounds"] += simulation.score.rounds - before[1]

    assert verified["off"] / verified["off rounds"] < 0.1
    assert verified["on"] / verified["on rounds"] > 2
    assert verified["off again"] / verified["off again rounds"] < 0.1


def test_it_turns_itself_off_when_drafting_becomes_dear() -> None:
    machine, of = MadeUp(6, 1.7, 1.0, slower_from=1000), texts(always(0.8))

    before = simulate(Auto(), machine, of, 1, 900)
    auto = Auto()
    after = simulate(auto, machine, of, 1, 1000, settle=1400)

    assert before.made > 2 * before.rounds
    assert auto.auto.figures.depth < 0.3
    assert after.speed >= 0.97 * simulate(Static(0), machine, of, 1, 500).speed


def test_sequences_that_share_rounds_get_depths_of_their_own() -> None:
    easy, hard = texts(always(0.95), length=10_000, count=1)[0], texts(always(0.1), length=10_000, count=1)[0]
    auto = Auto()
    simulation = Simulation(auto, CHEAP, [easy, hard])
    simulation.run(2, 200)
    depths = Counter[int]()
    for _ in range(300):
        simulation.run(2, 1)
        for running in simulation._running:
            depths[running.sequence_id] += len(running.drafts)

    assert depths[0] / 300 > 3
    assert depths[1] / 300 < 0.5


# The floor -----------------------------------------------------------------------------------------------------------


def lying(accept: Accept, **more: int) -> list[Text]:
    """Drafts that are all sure of themselves, whatever becomes of them."""
    return texts(accept, lead=20.0, **more)


def switching(place: int, position: int) -> float:
    return 1.0 if place // 40 % 2 else 0.0


def dropping(place: int, position: int) -> float:
    return 0.98 if place < 300 else 0.0


ADVERSARIES = {
    "zero": lying(always(0.0)),
    "switching": lying(switching),
    "sudden drop": lying(dropping, length=900),
    "coin": lying(always(0.3)),
}


@pytest.mark.parametrize(("machine", "adversary", "batch"), chequered(MACHINES, ADVERSARIES, BATCHES))
def test_an_adversary_costs_no_more_than_the_ledger_held(machine: MadeUp, adversary: list[Text], batch: int) -> None:
    """Over every stretch of rounds; the round that empties the ledger, and a modest error of the model, on top."""
    quiet = MadeUp(machine.base, machine.per_row, machine.per_step, noisy=False)
    simulation = Simulation(Auto(), quiet, adversary)
    undrafted = sum(quiet.seconds(Shape(batch, batch, 0, 0)))
    balance = peak = worst = 0.0
    for number in range(3000 if batch == 1 else 800):
        before = simulation.score.tokens, simulation.score.seconds
        simulation.run(batch, 1)
        worth = (simulation.score.tokens - before[0]) / batch
        took = (simulation.score.seconds - before[1]) / undrafted
        if number >= 20:  # the first rounds teach what a round takes
            balance += (1 + SHARE) * worth - took
            peak = max(peak, balance)
            worst = max(worst, took)
            assert peak - balance <= 1.3 * CAP + worst


@pytest.mark.parametrize("adversary", ADVERSARIES)
def test_under_an_adversary_it_is_hardly_slower_than_without_drafts(adversary: str) -> None:
    off = simulate(Static(0), SCOUT, ADVERSARIES[adversary], 4, 1500).speed

    assert simulate(Auto(), SCOUT, ADVERSARIES[adversary], 4, 1500, settle=50).speed >= 0.98 * off


def test_while_stopped_nothing_is_drafted_and_nobody_is_followed() -> None:
    auto = AutoDepth()
    auto.account.turn_to(2, heat=1)
    while not auto.account.ledger.stopped:
        auto.account.ledger.settle(worth=1.0, took=2.0)
    policy = Auto(auto)
    simulation = Simulation(policy, SCOUT, texts(always(0.9)))
    simulation.run(2, 20)

    assert simulation.score.made == 0
    assert not auto.follows(0)
