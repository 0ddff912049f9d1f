"""Which drafter makes a sequence's next drafts: the one that is worth most tokens per second, by what each has shown.

A draft's worth is how likely it is reached less the price of verifying it; a model's steps have a price of their own,
which the sequences of a round share. Prompt lookup has proposed already when the choice is made, and knows how well
it matched. Pure: knows no rounds, tensors or clocks.
"""

from collections.abc import Sequence
from itertools import accumulate
from operator import mul

from outrider.workers.speculation.acceptance import Acceptance
from outrider.workers.speculation.drafter import Draft
from outrider.workers.speculation.drafter_prices import DrafterPrices

_MOST = 16
_FIRST_GUESS = 0.7  # a model's acceptance at every position before anything was seen
_OWN_MEMORY, _ALL_MEMORY, _PRIOR_WEIGHT = 30.0, 200.0, 8.0


class ModelAcceptance:
    """Of one model that drafts: the rates of all sequences together, and from there each one's own."""

    def __init__(self) -> None:
        self._all = Acceptance(_MOST, memory=_ALL_MEMORY, prior_weight=_PRIOR_WEIGHT)
        self._all_rates = [_FIRST_GUESS] * _MOST
        self._own: dict[int, Acceptance] = {}

    def observe(self, sequence_id: int, made: int, accepted: int, finished: bool) -> None:
        """What became of `made` drafts. Those that were not verified count as not accepted."""
        own = self._own.get(sequence_id)
        if own is None:
            own = self._own[sequence_id] = Acceptance(_MOST, memory=_OWN_MEMORY, prior_weight=_PRIOR_WEIGHT)
        self._all.observe(made, accepted, finished)
        own.observe(made, accepted, finished)
        self._all_rates = self._all.rates([_FIRST_GUESS] * _MOST)

    def rates(self, sequence_id: int, drafts: int) -> list[float]:
        own = self._own.get(sequence_id)
        return (own.rates(self._all_rates) if own is not None else self._all_rates)[:drafts]

    def forget(self, sequence_id: int) -> None:
        self._own.pop(sequence_id, None)


def worth_of_rows(rates: Sequence[float], row_price: float) -> tuple[int, float]:
    """How many drafts of these rates are worth their rows, and what they bring above that, in tokens."""
    kept, worth = 0, 0.0
    for reached in accumulate(rates, mul):
        if reached < row_price:
            break
        kept, worth = kept + 1, worth + reached - row_price
    return kept, worth


class DrafterChooser:
    """Chooses between a looked-up proposal and the models that may draft. Sequences are told apart by id."""

    def __init__(self, models: Sequence[str], prices: DrafterPrices) -> None:
        """`models`: the drafters that pay for each step; the first is the one whose turn it is when all are alike."""
        self.prices = prices
        self.acceptance = {name: ModelAcceptance() for name in models}

    def looked_up(self, proposal: Sequence[Draft]) -> tuple[int, float]:
        """How many of a proposal's drafts are worth verifying, and what that is worth."""
        return worth_of_rows([draft.confidence for draft in proposal], self.prices.of_row())

    def best_model(self, sequence_id: int, steps: int, sharing: int) -> tuple[str | None, float]:
        """The model whose `steps` drafts are worth most, and how much: None where there is no model, or no step.

        `sharing`: how many sequences draft together, and share the price of the steps.
        """
        worths = {name: self._worth(name, sequence_id, steps, sharing) for name in self.acceptance if steps}
        best = max(worths, key=worths.__getitem__, default=None)
        return best, worths[best] if best is not None else 0.0

    def forget(self, sequence_id: int) -> None:
        for acceptance in self.acceptance.values():
            acceptance.forget(sequence_id)

    def _worth(self, name: str, sequence_id: int, steps: int, sharing: int) -> float:
        _, worth = worth_of_rows(self.acceptance[name].rates(sequence_id, steps), self.prices.of_row())
        return worth - self.prices.of_drafting(name, steps) / max(sharing, 1)
