"""The depth rule, in simulations: a model of what rounds take, one of acceptance, and the policy between them."""

import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from outrider.workers.speculation.auto_depth import AUTO_DEPTHS, AutoDepth, Drafted
from outrider.workers.speculation.cost import RoundCosts

Accept = Callable[[int, int, int], float]  # round, sequence, position -> probability


@dataclass(frozen=True)
class Machine:
    """What a round takes: a fixed part, a part per row, and a part per draft step that the sequences share."""

    base: float
    per_row: float
    per_step: float
    slower_from: int = 10**9  # the round from which drafting steps take ten times as long

    def seconds(self, number: int, depths: list[int]) -> float:
        step = self.per_step * (10 if number >= self.slower_from else 1)
        return self.base + self.per_row * (len(depths) + sum(depths)) + step * max(depths) + 0.1 * step * sum(depths)


CHEAP, SCOUT, STEEP = Machine(7, 0.6, 0.6), Machine(6, 1.7, 1.0), Machine(1, 6, 6)


@dataclass
class Run:
    """What a simulation came to, by its expectations: the noise that the policy sees is not scored."""

    tokens: float = 0.0
    seconds: float = 0.0
    depths: Counter[int] = field(default_factory=Counter)

    @property
    def speed(self) -> float:
        return self.tokens / self.seconds

    def add(self, machine: Machine, accept: Accept, number: int, depths: list[int]) -> None:
        self.seconds += machine.seconds(number, depths)
        self.depths.update(depths)
        for sequence, depth in enumerate(depths):
            chances = [accept(number, sequence, position) for position in range(depth)]
            self.tokens += 1 + sum(math.prod(chances[: n + 1]) for n in range(depth))


def simulate(machine: Machine, accept: Accept, rounds: int, *, batch: int = 1, settle: int = 0, seed: int = 0) -> Run:
    """Counts from round `settle` on. Times jitter by 10 %, and one in a hundred is four times as long."""
    rng, policy, run = random.Random(seed), AutoDepth(), Run()
    for number in range(rounds):
        depths = [policy.depth(s) for s in range(batch)]
        seconds = machine.seconds(number, depths) * (1 + 0.1 * rng.random()) * (4 if rng.random() < 0.01 else 1)
        accepted = [verified(depth, number, s, accept, rng) for s, depth in enumerate(depths)]
        policy.observe([Drafted(s, d, a) for s, (d, a) in enumerate(zip(depths, accepted, strict=True))], seconds)
        if number >= settle:
            run.add(machine, accept, number, depths)
    return run


def fixed_speed(machine: Machine, accept: Accept, batch: int, depth: int) -> float:
    run = Run()
    run.add(machine, accept, 0, [depth] * batch)
    return run.speed


def verified(depth: int, number: int, sequence: int, accept: Accept, rng: random.Random) -> int:
    accepted = 0
    while accepted < depth and rng.random() < accept(number, sequence, accepted):
        accepted += 1
    return accepted


def always(probability: float) -> Accept:
    return lambda number, sequence, position: probability


def falling(number: int, sequence: int, position: int) -> float:
    return (0.9, 0.6, 0.3, 0.2, 0.1, 0.1)[position]


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("machine", [CHEAP, SCOUT, STEEP], ids=["cheap", "scout", "steep"])
@pytest.mark.parametrize(
    "accept",
    [always(0.02), always(0.5), always(0.7), always(0.92), falling],
    ids=["none", "half", "0.7", "0.92", "falling"],
)
def test_it_comes_near_the_best_fixed_depth_and_is_never_slower_than_none(
    machine: Machine, accept: Accept, batch: int
) -> None:
    fixed = [fixed_speed(machine, accept, batch, depth) for depth in AUTO_DEPTHS]

    speed = simulate(machine, accept, 2000 if batch == 1 else 700, batch=batch, settle=150).speed

    assert speed >= 0.95 * max(fixed)
    assert speed >= 0.97 * fixed[0]


@pytest.mark.parametrize(("machine", "accept"), [(CHEAP, 0.0), (SCOUT, 0.1), (STEEP, 0.9)])
def test_it_turns_itself_off_where_drafts_do_not_pay(machine: Machine, accept: float) -> None:
    depths = simulate(machine, always(accept), 1000, settle=200).depths

    assert depths[0] / depths.total() > 0.9
    assert depths[0] < depths.total()  # and goes on asking


@pytest.mark.parametrize("seed", [0, 1])
def test_sequences_that_share_rounds_do_not_draft_one_by_one_where_that_pays_for_none(seed: int) -> None:
    """A lone drafter's steps delay all the others."""
    machine = Machine(5, 4, 2)

    run = simulate(machine, always(0.92), 700, batch=8, settle=150, seed=seed)

    assert run.speed >= 0.97 * fixed_speed(machine, always(0.92), 8, 0)


@pytest.mark.parametrize(("gain", "depth"), [(1.01, 0), (1.03, 1)])
def test_it_does_not_draft_for_a_gain_within_the_noise(gain: float, depth: int) -> None:
    costs = RoundCosts(AUTO_DEPTHS)
    for tried in AUTO_DEPTHS * 3:  # a first draft is expected to be 0.7 tokens
        costs.observe(1, tried, {0: 1.0, 1: 1.7 / gain}.get(tried, 9.0))

    assert AutoDepth(costs=costs).depth(0) == depth


def test_it_turns_itself_on_and_off_again_as_acceptance_changes() -> None:
    def changing(number: int, sequence: int, position: int) -> float:
        return 0.92 if 1000 <= number < 2000 else 0.02

    off, on, off_again = (simulate(SCOUT, changing, end, settle=end - 500).depths for end in (1000, 2000, 3000))

    assert off[0] > 450
    assert on[0] < 50
    assert off_again[0] > 450


def test_it_turns_itself_off_when_drafting_becomes_dear() -> None:
    machine = Machine(6, 1.7, 1.0, slower_from=1000)

    before = simulate(machine, always(0.8), 1000, settle=500).depths
    after = simulate(machine, always(0.8), 2000, settle=1500).depths

    assert before[0] < 50
    assert after[0] > 450


def test_sequences_that_share_rounds_get_depths_of_their_own() -> None:
    rng, policy = random.Random(0), AutoDepth()
    depths: dict[int, Counter[int]] = {0: Counter(), 1: Counter()}
    for number in range(600):
        chosen = [policy.depth(s) for s in (0, 1)]
        accepted = [verified(d, number, s, lambda r, s, p: (0.95, 0.1)[s], rng) for s, d in enumerate(chosen)]
        policy.observe(
            [Drafted(s, d, a) for s, (d, a) in enumerate(zip(chosen, accepted, strict=True))],
            CHEAP.seconds(number, chosen),
        )
        for s, depth in enumerate(chosen):
            depths[s][depth] += number >= 200

    assert depths[0].most_common(1)[0][0] >= 3
    assert depths[1].most_common(1)[0][0] == 0


def test_with_seeded_costs_it_drafts_from_the_first_round() -> None:
    assert seeded().depth(0) >= 2


def test_without_any_measurement_it_tries_none_first_and_then_drafts() -> None:
    depths = simulate(CHEAP, always(0.9), 30).depths

    assert set(depths) > {0}
    assert depths[0] <= 6


def test_rounds_of_unknown_time_teach_acceptance_only() -> None:
    policy = seeded()
    before = policy.depth(0)

    for _ in range(60):
        policy.observe([Drafted(0, 3, 0)], None)

    assert before >= 2
    assert policy.depth(0) == 0


def test_what_a_sequence_was_never_told_of_its_last_drafts_is_not_counted() -> None:
    policy = seeded()
    first = policy.depth(7)

    for _ in range(50):
        policy.observe([Drafted(7, 1, 0, finished=True)], None)

    assert first >= 2
    assert policy.depth(7) == policy.depth(8) == first


def test_a_forgotten_sequence_begins_anew() -> None:
    policy = seeded()
    first = policy.depth(7)
    policy.observe([Drafted(7, 3, 0)] * 15, None)
    assert policy.depth(7) < first

    policy.forget(7)
    policy.forget(7)

    assert len(policy) == 0
    assert policy.depth(7) == policy.depth(8)


def seeded() -> AutoDepth:
    """Knows what rounds of one sequence take on CHEAP, and nothing of acceptance."""
    costs = RoundCosts(AUTO_DEPTHS)
    for depth in AUTO_DEPTHS * 3:
        costs.observe(1, depth, CHEAP.seconds(0, [depth]))
    return AutoDepth(costs=costs)
