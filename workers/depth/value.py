"""The value of drafts: expected accepted tokens minus the time they take, multiplied by the price.

The price is the number of tokens that the live sequences produce per second at their best depths. A draft is made, and
verified, if its expected tokens exceed its time multiplied by the price. Pure arithmetic on the models of acceptance
and round time; knows nothing of budgets and measurements.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from outrider.workers.depth.acceptance import Acceptance, DraftKind, MadeDrafts
from outrider.workers.depth.round_time import RoundTime, Shape
from outrider.workers.types.rounds.stop_rule import StopRule

Floats = NDArray[np.float64]

_STEP_SHARE = (
    0.6  # share of a step's price that its draft must bring, since further drafts may follow it (simulation: +1 %)
)


class Live(NamedTuple):
    """A sequence that a model may draft for."""

    sequence_id: int
    kind: DraftKind
    context: int  # tokens


class Depths(NamedTuple):
    """The best numbers of drafts to make, [sequences], and their value."""

    depths: list[int]
    gain: float  # expected tokens minus the price of their time; negative if no drafts are better
    brings: float  # expected tokens


class Value:
    """The value of one replica's drafts. All seconds are relative seconds (round_time.py)."""

    def __init__(self, acceptance: Acceptance, time: RoundTime, deepest: int, *, every_step: bool = False) -> None:
        """`every_step`: early stopping saves no time, since all steps up to the deepest always run."""
        self._acceptance, self._time, self._deepest, self._every_step = acceptance, time, deepest, every_step
        self.speedup = 1.0  # expected from the depths chosen last, over no drafts
        self._plain_s = self._price = self._row_s = self._further_row_s = 0.0

    @property
    def price(self) -> float:
        """Tokens per relative second."""
        return self._price

    def best_depths(self, live: Sequence[Live], plain: Shape) -> Depths:
        """The best depths for sequences in rounds of shape `plain`. Sets the price to the tokens/s expected from them.

        Alternates between the best depths at a price and the price at these depths (Dinkelbach's method), twice.
        """
        self._plain_s = self._time.relative_plain_s(plain)
        more_rows = self._time.more_rows(plain.rows, max(len(live) * self._deepest, plain.rows))
        self._row_s = float(more_rows[1])
        self._further_row_s = float(more_rows[plain.rows]) / plain.rows
        predicted = self._acceptance.predict([(each.sequence_id, each.kind) for each in live])
        slots_s = np.array([self._slot_s(each) for each in live])
        following, token, *drafting = self._time.drafting(live[0].kind.drafter)
        drafting[2] += drafting[3] * (live[0].kind.temperature_class > 0)
        upkeep_s = following + token * len(live)
        self.speedup, depths = 1.0, Depths([], 0.0, 0.0)
        for _ in range(2):
            self._price = self.speedup * plain.sequences / self._plain_s
            depths = _best_depths(predicted, slots_s, more_rows, drafting, self._price)
            takes_s = (depths.brings - depths.gain) / self._price + upkeep_s + token * depths.brings
            promised = (1.0 + depths.brings / plain.sequences) / (1.0 + takes_s / self._plain_s)
            if promised <= self.speedup:
                break
            self.speedup = promised
        return depths._replace(gain=depths.gain - self._price * (upkeep_s + token * depths.brings))

    def affordable_depth(self, live: Sequence[Live], plain: Shape, plain_rounds: float) -> int:
        """The largest depth, at least 1, whose drafts cost no more than `plain_rounds` if all are rejected."""
        _, _, first, step, draft, sampled = self._time.drafting(live[0].kind.drafter)
        each_s = step + len(live) * (draft + sampled + self._slot_s(live[0]))
        more_rows = self._time.more_rows(plain.rows, max(len(live) * self._deepest, plain.rows))
        for depth in range(self._deepest, 1, -1):
            if first + depth * each_s + more_rows[len(live) * depth] <= plain_rounds * self._plain_s:
                return depth
        return 1

    def stop_rule(self, each: Live) -> StopRule:
        """The sequence's rule for early stopping. Another draft costs as much as a row beyond the first ones."""
        *_, step, draft, sampled = self._time.drafting(each.kind.drafter)
        step_price = 0.0 if self._every_step else _STEP_SHARE * self._price * step
        own_s = self._further_row_s + self._slot_s(each) + draft + sampled * (each.kind.temperature_class > 0)
        return self._acceptance.stop_rule(each.sequence_id, each.kind, self._price * own_s, step_price)

    def model_value(self, sequence_id: int, kind: DraftKind, steps: int, sharing: int) -> float:
        """Expected tokens of up to `steps` drafts of the kind's model, minus their price.

        `sharing`: sequences that draft together and share the steps' time.
        """
        predicted = self._acceptance.predict_one(sequence_id, kind)[:steps]
        _, _, first, step, draft, _ = self._time.drafting(kind.drafter)
        each = self._price * (self._row_s + step / max(sharing, 1) + draft)
        return _worth_of_leading(predicted, each)[1] - self._price * first / max(sharing, 1)

    def lookup_value(self, survivals: Iterable[float]) -> tuple[int, float]:
        """How many looked-up drafts are worth their rows, and their expected tokens minus the rows' price."""
        return _worth_of_leading(survivals, self._price * self._row_s)

    def worth_verifying(self, made: Sequence[MadeDrafts], base: Shape) -> list[int]:
        """How many leading drafts of each sequence to verify. `base`: the next round without these drafts."""
        slot_s = self._time.slot_s(base.context / base.sequences, sampled=made[0].kind.temperature_class > 0)
        if len(made) == 1:
            chances = self._acceptance.evaluate_one(made[0])
            more_rows = self._time.more_rows(base.rows, len(chances)).tolist()
            costs = [self._price * (more + slot_s * n) for n, more in enumerate(more_rows)]
            return [_best_of_leading(chances, costs)[0]]
        survivals = self._acceptance.evaluate(made)
        order = np.argsort(-survivals, kind="stable")
        more_rows = self._time.more_rows(base.rows, len(survivals))[1:]
        known = int(np.isfinite(more_rows).sum())  # avoids infinity * 0, which is NaN
        gains = np.cumsum(survivals[order[:known]])
        gains -= self._price * (more_rows[:known] + slot_s * np.arange(1, known + 1))
        best = int(gains.argmax())
        if gains[best] <= 0.0:
            return [0] * len(made)
        owners = np.repeat(np.arange(len(made)), [len(each.leads) for each in made])[order[: best + 1]]
        counts: list[int] = np.bincount(owners, minlength=len(made)).tolist()
        return counts

    def _slot_s(self, each: Live) -> float:
        return self._time.slot_s(each.context, sampled=each.kind.temperature_class > 0)


def _best_depths(
    predicted: Floats, slots_s: Floats, more_rows: Floats, drafting: Sequence[float], price: float
) -> Depths:
    """The best drafts for each number of steps, and then the best number of steps.

    `predicted` [sequences, depth]: probabilities. `slots_s` [sequences]: seconds per row that depend on the sequence.
    `more_rows` [n + 1]: seconds that n more rows add. `drafting`: seconds per round, step and draft.
    """
    first, step, draft, _ = drafting
    sequences, deepest = predicted.shape
    if sequences == 1:  # the same without arrays, which is faster for one sequence
        each = float(slots_s[0]) + draft + step
        costs = [price * (first * (n > 0) + n * each + more) for n, more in enumerate(more_rows.tolist())]
        depth, gain, brings = _best_of_leading(predicted[0].tolist(), costs, least=1)
        return Depths([depth], gain, brings)
    values = (predicted - price * (slots_s[:, None] + draft)).ravel()
    order = np.argsort(-values, kind="stable")
    steps = np.arange(1, deepest + 1)
    made = order % deepest < steps[:, None]  # [steps, drafts]
    gains = np.cumsum(made * values[order], axis=1) - price * more_rows[np.cumsum(made, axis=1)]
    by_steps = gains.max(axis=1) - price * (first + step * steps)
    best = int(by_steps.argmax())
    last = int(gains[best].argmax()) + 1
    chosen = order[:last][made[best, :last]]
    depths = np.bincount(chosen // deepest, minlength=sequences).tolist()
    return Depths(depths, float(by_steps[best]), float(predicted.ravel()[chosen].sum()))


def _best_of_leading(survivals: Sequence[float], costs: Sequence[float], *, least: int = 0) -> tuple[int, float, float]:
    """The best number of leading drafts, at least `least`; its expected tokens minus costs, and its expected tokens."""
    best, best_net, best_brings, brings = 0, 0.0 if not least else -math.inf, 0.0, 0.0
    for number, chance in enumerate(survivals, 1):
        brings += chance
        if brings - costs[number] > best_net:
            best, best_net, best_brings = number, brings - costs[number], brings
    return best, best_net, best_brings


def _worth_of_leading(survivals: Iterable[float], price: float) -> tuple[int, float]:
    kept, worth = 0, 0.0
    for chance in survivals:
        if chance < price:
            break
        kept, worth = kept + 1, worth + chance - price
    return kept, worth
