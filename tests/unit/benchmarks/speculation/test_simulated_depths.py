"""Depths by the price of time, between made-up texts and machines: never far from the best, never below off."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import mean

import numpy as np
import pytest
from grids import chequered

from benchmarks.speculation.recorders import DEPTH
from benchmarks.speculation.simulation import Auto, Place, Played, Score, Simulation, Static, Text
from outrider.workers.depth.acceptance import DraftKind
from outrider.workers.depth.budget import CAP, SHARE
from outrider.workers.depth.round_time import Shape

Accept = Callable[[int, int], float]  # place, position -> probability


@dataclass
class MadeUp:
    """A machine: a fixed part, a part per row, and a part per draft step that the sequences share."""

    base: float
    per_row: float
    per_step: float
    slower_from: int = 10**9  # the round from which drafting steps take ten times as long
    noisy: bool = True
    rounds: int = 0

    def seconds(self, shape: Shape) -> tuple[float, float]:
        step = self.per_step * (10 if self.rounds >= self.slower_from else 1)
        self.rounds += 1
        follows = 0.2 + 0.05 * self.per_step * shape.followed if shape.followed else 0.0
        return self.base + self.per_row * shape.rows, follows + step * shape.steps + 0.1 * step * shape.drafts

    def noise(self, rng: np.random.Generator) -> float:
        return (1 + 0.1 * rng.random()) * (4 if rng.random() < 0.01 else 1) if self.noisy else 1.0


CHEAP, SCOUT, STEEP = (7, 0.6, 0.6), (6, 1.7, 1.0), (1, 6, 6)
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
        made.append(Text(DraftKind("mtp", 1), places))
    return made


def _telling(stood: bool, rng: random.Random) -> float:
    return rng.expovariate(0.4) if stood else rng.expovariate(1.5)


def always(probability: float) -> Accept:
    return lambda place, position: probability


def falling(place: int, position: int) -> float:
    return (0.9, 0.6, 0.3, 0.2, 0.1, 0.1, 0.1, 0.1)[position]


def simulate(
    policy: Auto | Static, machine: MadeUp, of: list[Text], batch: int, rounds: int, settle: int = 0, seed: int = 0
) -> Score:
    """What came of the rounds after the first `settle`."""
    simulation = Simulation(policy, machine, of, seed=seed)
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
    machine: tuple[float, ...], accept: Accept, batch: int
) -> None:
    rounds, of = 2000 if batch == 1 else 600, texts(accept)
    fixed = [simulate(Static(depth), MadeUp(*machine), of, batch, rounds).speed for depth in (0, 1, 2, 3, 4, 6)]

    speed = mean(simulate(Auto(), MadeUp(*machine), of, batch, rounds, settle=150, seed=s).speed for s in range(2))

    assert speed >= 0.88 * max(fixed)
    assert speed >= 0.97 * fixed[0]


def test_confidence_that_tells_makes_it_faster_than_confidence_that_does_not() -> None:
    """Where drafts are cheap to make, and dear to verify."""
    machine = (6, 2.0, 0.2)
    telling, mute = (
        sum(
            simulate(Auto(), MadeUp(*machine), texts(always(0.6), lead=lead, seed=seed), 1, 2000, settle=150).speed
            for seed in range(4)
        )
        for lead in (None, 1.0)
    )

    assert telling > 1.01 * mute


def test_it_turns_itself_on_and_off_again_as_acceptance_changes() -> None:
    """A text that is hopeless for a thousand tokens, then easy, then hopeless."""

    def changing(place: int, position: int) -> float:
        return 0.92 if 1000 <= place < 4000 else 0.02

    simulation = Simulation(Auto(), MadeUp(*SCOUT), texts(changing, count=1, length=6000))
    verified: Counter[str] = Counter()
    while (place := simulation.score.tokens) < 5900:
        part = "off" if place < 1000 else "on" if 1300 <= place < 4000 else "off again" if place >= 4300 else "between"
        before = simulation.score.verified, simulation.score.rounds
        simulation.run(1, 1)
        verified[part] += simulation.score.verified - before[0]
        verified[part + " rounds"] += simulation.score.rounds - before[1]

    assert verified["off"] / verified["off rounds"] < 0.1
    assert verified["on"] / verified["on rounds"] > 2
    assert verified["off again"] / verified["off again rounds"] < 0.1


def test_it_turns_itself_off_when_drafting_becomes_dear() -> None:
    machine, of = MadeUp(*SCOUT, slower_from=1000), texts(always(0.8))
    simulation = Simulation(Auto(), machine, of)
    before = simulation.run(1, 900).made
    simulation.run(1, 500)
    made, seconds, tokens = simulation.score.made, simulation.score.seconds, simulation.score.tokens
    after = simulation.run(1, 1000)

    assert before > 2 * 900
    assert after.made - made < 0.3 * 1000
    assert (after.tokens - tokens) / (after.seconds - seconds) >= 0.97 / (6 + 1.7)


@dataclass(slots=True)
class Watched(Auto):
    """Counts the drafts that are verified of each sequence."""

    kept: Counter[int] = field(default_factory=Counter)

    def observe(self, played: Played) -> dict[int, int]:
        kept = Auto.observe(self, played)
        self.kept.update(kept)
        return kept


def test_sequences_that_share_rounds_get_depths_of_their_own() -> None:
    easy, hard = texts(always(0.95), length=10_000, count=1)[0], texts(always(0.1), length=10_000, count=1)[0]
    policy = Watched()
    simulation = Simulation(policy, MadeUp(*CHEAP), [easy, hard])
    simulation.run(2, 200)
    policy.kept.clear()
    simulation.run(2, 300)

    assert policy.kept[0] / 300 > 3
    assert policy.kept[1] / 300 < 0.5


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
def test_in_no_window_of_rounds_an_adversary_costs_more_than_the_token_bucket_and_1_percent(
    machine: tuple[float, ...], adversary: list[Text], batch: int
) -> None:
    """But for the round that empties the bucket, and the next, which verifies what was drafted by then.

    On a machine without noise; losses are counted in plain rounds.
    """
    simulation = Simulation(Auto(), MadeUp(*machine, noisy=False), adversary)
    plain_s = sum(MadeUp(*machine).seconds(Shape.plain(batch, 0.0)))
    balance = peak = worst = 0.0
    for number in range(3000 if batch == 1 else 800):
        before = simulation.score.tokens, simulation.score.seconds
        simulation.run(batch, 1)
        tokens = (simulation.score.tokens - before[0]) / batch
        took = (simulation.score.seconds - before[1]) / plain_s
        if number >= 20:  # the first rounds teach what a round takes
            balance += SHARE + tokens - took
            peak = max(peak, balance)
            worst = max(worst, took)
            assert peak - balance <= 1.05 * CAP + 2 * worst


@pytest.mark.parametrize("adversary", ADVERSARIES)
def test_under_an_adversary_it_is_hardly_slower_than_without_drafts(adversary: str) -> None:
    off = simulate(Static(0), MadeUp(*SCOUT), ADVERSARIES[adversary], 4, 1500).speed

    assert simulate(Auto(), MadeUp(*SCOUT), ADVERSARIES[adversary], 4, 1500, settle=300).speed >= 0.98 * off
