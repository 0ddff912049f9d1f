"""What drafts are worth at present: their chance against the time that they take, at the price of that time.

The price is what the live sequences' own best drafts promise to make of a second: what time is spent on must bring at
least that. Knows the models of acceptance and of time, and none of who is tried, measured or stopped. Pure.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from operator import mul
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from outrider.workers.speculation.acceptance import Acceptance, Kind, Made
from outrider.workers.speculation.cost import RoundCost
from outrider.workers.speculation.known_times import Shape
from outrider.workers.speculation.looked_up import NOTHING, LookedUp, LookedUps
from outrider.workers.speculation.patience import Patience
from outrider.workers.speculation.planning import (
    Depths,
    DraftSeconds,
    Worth,
    depth_worth_alone,
    depths_worth,
    slots_worth,
    slots_worth_of_few,
    worth_of_rows,
)

_FEW = 32  # drafts, up to which lists are faster than arrays


class Live(NamedTuple):
    """A sequence that may draft next."""

    sequence_id: int
    kind: Kind
    context: int  # tokens


class _Terms(NamedTuple):
    """On which drafts join a round."""

    price: float  # of a relative second, in tokens
    slot_s: float  # relative seconds that each adds by itself
    more_rows: NDArray[np.float64]  # that so many add
    costs: list[float]  # tokens that 0, 1, 2, ... of them must bring


class Worths:
    """Of one replica. Seconds are the cost model's relative ones."""

    def __init__(self, acceptance: Acceptance, cost: RoundCost, deepest: int, *, every_step: bool = False) -> None:
        """`every_step`: all up to the deepest are run, whoever stops, so that stopping spares none."""
        self._acceptance, self._cost, self._deepest, self._every_step = acceptance, cost, deepest, every_step
        self.found = LookedUps()
        self.promise = 1.0  # how much faster the depths set last should make it
        self._price = self._row_price = 0.0  # tokens that a second, and a further row, must bring
        self._found_row_price = 0.0  # the same of a row where drafts are looked up
        self._row_s = self._further_row_s = 0.0  # that a row takes, and one where each sequence has a draft already
        self._terms: dict[tuple[int, int, int], _Terms] = {}  # by round and drafts, while the price stands

    def price_of(self, live: Sequence[Live], plain: Shape) -> LookedUp:
        """Sets the price for rounds like `plain`, as long as models have no part in them.

        Gives what is looked up for its sequences. That makes time no dearer for models: what can be copied remains to
        be said however fast the rest is. Further looked-up rows compete with it alone.
        """
        self._set_price(plain, 1.0)
        found = self.found.of([each.sequence_id for each in live])
        self._found_row_price = self._row_price
        if found.share:
            if_all = plain.sequences / found.share  # were all looked up
            self._found_row_price *= max(
                self._promised(plain, if_all * found.tokens, if_all * found.rows * self._row_s), 1.0
            )
        return found

    def _set_price(self, plain: Shape, promise: float) -> None:
        self.promise, self._terms = promise, {}
        self._price = self._price_at(plain)
        self._row_s = self._cost.further_row(plain.rows) + self._cost.slot(plain.context / plain.sequences)
        self._row_price = self._price * self._row_s
        self._further_row_s = self._cost.further_row(2 * plain.rows)

    def _promised(self, plain: Shape, tokens: float, takes_s: float) -> float:
        """How much faster drafts make rounds like `plain` that bring so many tokens more and take so much longer."""
        plain_s = self._cost.plain(plain.sequences, plain.context)
        return (1.0 + tokens / plain.sequences) / (1.0 + takes_s / plain_s)

    def _price_at(self, base: Shape) -> float:
        plain_s = self._cost.plain(base.sequences, base.context)
        return self.promise * base.sequences / plain_s

    def looked_up(self, chances: Sequence[float]) -> tuple[int, float]:
        """How many looked-up drafts are worth their rows, and what they bring above a row's price elsewhere, in tokens.

        `chances`: of each that it stands if those before it do.
        """
        dearer = max(self._found_row_price, self._row_price)
        kept, worth = worth_of_rows(accumulate(chances, mul), dearer)
        return kept, worth + kept * (dearer - self._row_price)

    def model(self, sequence_id: int, kind: Kind, steps: int, sharing: int) -> float:
        """What up to `steps` drafts of the kind's model bring above their rows and their making, in tokens.

        `sharing`: how many sequences draft together, and share the steps.
        """
        survivals = self._acceptance.foreseen_alone(sequence_id, kind)[:steps]
        _, _, first, step, draft = self._cost.drafting(kind.drafter).coefficients
        each = self._row_price + self._price * (step / max(sharing, 1) + draft)
        return worth_of_rows(survivals, each)[1] - self._price * first / max(sharing, 1)

    def best_depths(self, live: Sequence[Live], plain: Shape, found: LookedUp = NOTHING) -> Depths:
        """At the price that they promise themselves, which is set then: time that brings more elsewhere is worth more.

        `found`: what `price_of` gave for these, just now. What is best at one price promises a higher one, until both
        agree (Dinkelbach's method); one step is enough.
        """
        depths_at = self._depths_at(live, plain)
        following, token, *_ = self._cost.drafting(live[0].kind.drafter).coefficients
        always_s = self._cost.readiness + self._cost.deciding + following + token * len(live)
        depths = depths_at(self._price)
        takes_s = (depths.brings - depths.gain) / self._price + always_s + token * depths.brings
        promise = self._promised(plain, depths.brings, takes_s)
        if promise > self.promise:
            self._set_price(plain, promise)
            depths = depths_at(self._price)
        left = 1.0 - found.share / len(live)  # of the rounds, to models
        upkeep_s = always_s + token * (found.tokens + left * depths.brings)
        return depths._replace(gain=left * depths.gain - self._price * upkeep_s)

    def _depths_at(self, live: Sequence[Live], plain: Shape) -> Callable[[float], Depths]:
        """The depths that are best at a price."""
        drafting = DraftSeconds(*self._cost.drafting(live[0].kind.drafter).coefficients[2:])
        more_rows = self._cost.more_rows(plain.rows, len(live) * self._deepest)
        if len(live) == 1:
            alone = self._acceptance.foreseen_alone(live[0].sequence_id, live[0].kind)
            return partial(depth_worth_alone, alone, self._cost.slot(live[0].context), more_rows.tolist(), drafting)
        slots_s = np.array([self._cost.slot(each.context) for each in live])
        foreseen = self._acceptance.foreseen([(each.sequence_id, each.kind) for each in live])
        return partial(depths_worth, foreseen, slots_s, more_rows, drafting)

    def patience(self, each: Live) -> Patience:
        """How long to draft for the sequence: the price of its further drafts is that of rows beyond the first ones."""
        _, _, _, step, draft = self._cost.drafting(each.kind.drafter).coefficients
        step_price = 0.0 if self._every_step else self._price * step
        own_s = self._further_row_s + self._cost.slot(each.context) + draft
        return self._acceptance.patience(each.sequence_id, each.kind, self._price * own_s, step_price)

    def trying(self, like: Live, sequences: int, plain: Shape) -> float:
        """Undrafted rounds that a draft for each of so many sequences takes, whatever it brings."""
        _, _, first, step, draft = self._cost.drafting(like.kind.drafter).coefficients
        each_s = draft + self._cost.slot(like.context)
        takes_s = first + step + sequences * each_s + float(self._cost.more_rows(plain.rows, sequences)[sequences])
        return takes_s / self._cost.plain(plain.sequences, plain.context)

    def slots(self, made: Sequence[Made], base: Shape) -> Worth:
        """How many leading drafts of each are worth verifying. `base`: the round that they would join, without them.

        Each has at least one draft. They are remembered, to be learned from.
        """
        slots = sum([len(each.leads) for each in made])
        terms = self._terms.get((base.sequences, base.rows, slots)) or self._terms_of(base, slots)
        if slots <= _FEW:
            return slots_worth_of_few([self._acceptance.judged_alone(each) for each in made], terms.costs)
        slot_s = np.full(len(made), terms.slot_s)
        return slots_worth(self._acceptance.judged(made), slot_s, terms.more_rows, terms.price)

    def _terms_of(self, base: Shape, slots: int) -> _Terms:
        more_rows = self._cost.more_rows(base.rows, slots)
        slot_s, price = self._cost.slot(base.context / base.sequences), self._price_at(base)
        costs = price * (more_rows + slot_s * np.arange(slots + 1))
        terms = self._terms[base.sequences, base.rows, slots] = _Terms(price, slot_s, more_rows, costs.tolist())
        return terms
