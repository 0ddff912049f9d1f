"""What drafts are worth, against every choice there is."""

import random
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest

from outrider.workers.depth.acceptance import Acceptance, DraftKind, MadeDrafts
from outrider.workers.depth.round_time import RoundTime, Shape
from outrider.workers.depth.value import Live, Value

DEEPEST, KIND = 4, DraftKind("mtp", 1)


class Case:
    """A machine and sequences by chance, all learned."""

    def __init__(self, seed: int, sequences: int) -> None:
        rng = self.rng = random.Random(seed)
        row_s, step_s = rng.choice((0.05, 0.2, 0.6)), rng.choice((0.02, 0.1, 0.4))
        self.acceptance, self.time = Acceptance(DEEPEST), RoundTime()
        for _ in range(200):
            rows, steps = rng.randint(1, 4 * sequences), rng.randint(0, DEEPEST)
            shape = Shape(
                sequences, sequences + rows, 0.0, 0.0, 0, steps, steps * sequences, followed=sequences if steps else 0
            )
            self.time.observe(shape, 1.0 + row_s * shape.rows, 0.05 + step_s * steps)
        for sequence_id in range(sequences):
            chance = rng.random()
            for _ in range(30):
                accepted = next((n for n in range(DEEPEST) if rng.random() > chance), DEEPEST)
                made = MadeDrafts(sequence_id, KIND, [2.0] * DEEPEST)
                self.acceptance.observe(made, min(accepted + 1, DEEPEST), accepted, usual=True)
        self.live = [Live(n, KIND, 10) for n in range(sequences)]
        self.plain = Shape.plain(sequences, 10.0 * sequences)
        self.value = Value(self.acceptance, self.time, DEEPEST)

    def net(self, depths: Sequence[int]) -> float:
        """What drafts of these depths bring above their price, in tokens."""
        predicted = self.acceptance.predict([(each.sequence_id, each.kind) for each in self.live])
        brings = sum(float(own[:depth].sum()) for own, depth in zip(predicted, depths, strict=True))
        _, _, first, step, draft, sampled = self.time.drafting("mtp")
        made_s = first + step * max(depths) + (draft + sampled) * sum(depths)
        slot_s = self.time.slot_s(10, sampled=True) * sum(depths)
        return brings - self.value.price * (made_s + slot_s + self.time.more_rows(self.plain.rows, sum(depths))[-1])


@pytest.mark.parametrize("sequences", [1, 2, 3])
@pytest.mark.parametrize("seed", range(6))
def test_no_depths_bring_more_than_the_best_ones(seed: int, sequences: int) -> None:
    case = Case(seed, sequences)
    found = case.value.best_depths(case.live, case.plain)

    every = [depths for depths in product(range(DEEPEST + 1), repeat=sequences) if any(depths)]
    assert case.net(found.depths) == pytest.approx(max(map(case.net, every)), abs=1e-9)


@pytest.mark.parametrize("sequences", [1, 3, 6])
@pytest.mark.parametrize("seed", range(6))
def test_no_other_drafts_are_worth_more_to_verify(seed: int, sequences: int) -> None:
    case = Case(seed, sequences)
    case.value.best_depths(case.live, case.plain)
    leads = [[case.rng.expovariate(0.5) for _ in range(case.rng.randint(1, 2))] for _ in range(sequences)]
    made = [MadeDrafts(n, KIND, own) for n, own in enumerate(leads)]
    slot_s, chances = case.time.slot_s(10, sampled=True), [np.hstack(case.acceptance.evaluate([own])) for own in made]

    def net(counts: Sequence[int]) -> float:
        brings = sum(float(own[:count].sum()) for own, count in zip(chances, counts, strict=True))
        rows_s = float(case.time.more_rows(case.plain.rows, sum(counts))[-1])
        return brings - case.value.price * (rows_s + slot_s * sum(counts))

    best = max(map(net, product(*(range(len(own) + 1) for own in leads))))
    assert net(case.value.worth_verifying(made, case.plain)) == pytest.approx(best, abs=1e-9)


def test_the_price_is_what_the_best_depths_promise_and_at_least_what_no_drafts_make() -> None:
    for seed in range(6):
        case = Case(seed, 2)
        case.value.best_depths(case.live, case.plain)

        assert case.value.speedup >= 1.0
        assert case.value.price >= 0.999 * 2 / case.time.relative_plain_s(case.plain)


def test_looked_up_drafts_are_worth_their_rows_as_long_as_they_are_likely_to_be_reached() -> None:
    case = Case(0, 1)
    case.value.best_depths(case.live, case.plain)
    price = case.value.price * float(case.time.more_rows(1, 1)[1])

    assert case.value.lookup_value([4 * price, 2 * price, price / 2]) == (2, pytest.approx(4 * price))
    assert case.value.lookup_value([price / 2, 4 * price]) == (0, 0.0)
    assert case.value.lookup_value([]) == (0, 0.0)


def test_steps_that_more_sequences_share_are_worth_more() -> None:
    case = Case(1, 2)
    case.value.best_depths(case.live, case.plain)

    assert case.value.model_value(0, KIND, 3, 8) > case.value.model_value(0, KIND, 3, 1)


def test_before_there_is_a_price_drafts_are_verified_up_to_twice_the_widest_round() -> None:
    time = RoundTime()
    time.observe(Shape.plain(4, 40.0), 1.0, 0.0)
    made = [MadeDrafts(n, KIND, [2.0] * DEEPEST) for n in range(4)]

    counts = Value(Acceptance(DEEPEST), time, DEEPEST).worth_verifying(made, Shape.plain(4, 40.0))

    assert sum(counts) == 4
