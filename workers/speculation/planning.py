"""Which drafts to make and which to verify, given what each is worth and what time costs. Pure arithmetic.

With time at a price (tokens a second), a slot is worth its survival less the price of what it adds to the round. Slots
of all sequences compete for the same rows, so a round takes them by value for as long as that grows. A lone sequence's
slots stand in order as they are; its decision is the same, without numpy, whose calls cost more than the sums.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Worth(NamedTuple):
    """What a choice of slots brings, in tokens over verifying none: `best` with `counts`, and with `every` one."""

    counts: list[int]  # [sequences] leading drafts to verify
    best: float
    every: float


class DraftSeconds(NamedTuple):
    """What making drafts takes."""

    first: float  # any at all
    step: float  # each step, which the sequences share
    draft: float  # each draft


class Depths(NamedTuple):
    """The best number of drafts to make, [sequences], but for none at all; and what it brings over none, in tokens."""

    depths: list[int]
    gain: float  # below 0 where none is better
    brings: float  # tokens, whatever they cost


def slots_worth(survivals: Floats, slot_s: Floats, more_rows: Floats, price: float) -> Worth:
    """Of made drafts those to verify. `survivals` [sequences, drafts] never rise along a row, and are 0 past its end.

    `slot_s` [sequences]: seconds that a row of this sequence adds by itself; `more_rows` [n + 1]: what so many rows
    add, for at least as many as there are slots.
    """
    slots = int(np.count_nonzero(survivals))
    values = survivals - price * slot_s[:, None]
    order = np.sort(values, axis=None)[::-1][:slots]
    if not slots:
        return Worth([0] * len(values), 0.0, 0.0)
    gains = np.cumsum(order) - price * more_rows[1 : slots + 1]
    best = int(gains.argmax())
    if gains[best] <= 0.0:
        return Worth([0] * len(values), 0.0, float(gains[-1]))
    kept = (values >= order[best]) & (survivals > 0.0)
    return Worth(kept.sum(axis=1).tolist(), float(gains[best]), float(gains[-1]))


def slots_worth_of_few(survivals: Sequence[Sequence[float]], costs: Sequence[float]) -> Worth:
    """`slots_worth` of few drafts, in less time. `costs`: what 0, 1, 2, ... of them must bring, whoever's they are."""
    if len(survivals) == 1:
        best, net, kept = _leading(survivals[0], costs)
        return Worth([kept], best, net)
    order = sorted([(survival, n) for n, own in enumerate(survivals) for survival in own], reverse=True)
    best, net, kept = _leading([survival for survival, _ in order], costs)
    counts = [0] * len(survivals)
    for _, n in order[:kept]:
        counts[n] += 1
    return Worth(counts, best, net)


def _leading(survivals: Sequence[float], costs: Sequence[float]) -> tuple[float, float, int]:
    """What the best number of the leading slots brings above its cost, what all bring, and that number."""
    reached = best = net = 0.0
    kept = 0
    for number, survival in enumerate(survivals, 1):
        reached += survival
        net = reached - costs[number]
        if net > best:
            best, kept = net, number
    return best, net, kept


def depths_worth(survivals: Floats, slot_s: Floats, more_rows: Floats, drafting: DraftSeconds, price: float) -> Depths:
    """How deep to draft. `survivals` [sequences, depth] are foreseen; the rest as in `slots_worth`.

    For each number of steps the best of the slots that it makes; of these numbers that which brings most.
    """
    sequences, deepest = survivals.shape
    values = (survivals - price * (slot_s[:, None] + drafting.draft)).ravel()
    order = np.argsort(-values, kind="stable")
    steps = np.arange(1, deepest + 1)
    made = order % deepest < steps[:, None]  # [steps, slots]
    gains = np.cumsum(made * values[order], axis=1) - price * more_rows[np.cumsum(made, axis=1)]
    by_steps = gains.max(axis=1) - price * (drafting.first + drafting.step * steps)
    best = int(by_steps.argmax())
    if gains[best].max() <= 0.0:
        one_each = values[::deepest].sum() - price * (more_rows[sequences] + drafting.first + drafting.step)
        return Depths([1] * sequences, float(one_each), float(survivals[:, 0].sum()))
    last = int(gains[best].argmax()) + 1
    chosen = order[:last][made[best, :last]]
    depths = np.bincount(chosen // deepest, minlength=sequences).tolist()
    return Depths(depths, float(by_steps[best]), float(survivals.ravel()[chosen].sum()))


def depth_worth_alone(
    survivals: Sequence[float], slot_s: float, more_rows: Sequence[float], drafting: DraftSeconds, price: float
) -> Depths:
    """`depths_worth` of a single sequence: each step is its own."""
    best, depth, brings, reached = -math.inf, 1, 0.0, 0.0
    each = slot_s + drafting.draft + drafting.step
    for number, survival in enumerate(survivals, 1):
        reached += survival
        net = reached - price * (drafting.first + number * each + more_rows[number])
        if net > best:
            best, depth, brings = net, number, reached
    return Depths([depth], best, brings)


def worth_of_rows(survivals: Iterable[float], row_price: float) -> tuple[int, float]:
    """How many drafts that are reached with these chances are worth a row each, and what they bring above that."""
    kept, worth = 0, 0.0
    for reached in survivals:
        if reached < row_price:
            break
        kept, worth = kept + 1, worth + reached - row_price
    return kept, worth
