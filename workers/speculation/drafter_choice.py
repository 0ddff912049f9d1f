"""Which drafter makes a sequence's next drafts: the one that is worth most tokens per second, by what each has shown.

A draft's worth is how likely it is reached less the price of verifying it; a model's steps have a price of their own,
which the sequences of a round share. Prompt lookup has proposed already when the choice is made, and knows how well
it matched. Pure: knows no rounds, tensors or clocks.
"""

from collections.abc import Sequence
from itertools import accumulate
from operator import mul

from outrider.workers.speculation.drafter import Draft
from outrider.workers.speculation.drafter_prices import DrafterPrices

_FIRST_GUESS = 0.7  # a model's acceptance at every position before anything was seen
_CEILING = 0.98
_OWN_MEMORY, _ALL_MEMORY, _PRIOR_WEIGHT = 30.0, 200.0, 8.0


class Counts:
    """By position, how many drafts were judged, given that those before them stood, and how many stood; fading."""

    __slots__ = ("_keep", "_stood", "_tried")

    def __init__(self, memory: float) -> None:
        self._keep = 1.0 - 1.0 / memory
        self._tried: list[float] = []
        self._stood: list[float] = []

    def observe(self, judged: int, accepted: int) -> None:
        while len(self._tried) < judged:
            self._tried.append(0.0)
            self._stood.append(0.0)
        for place in range(judged):
            self._tried[place] = self._tried[place] * self._keep + 1.0
            self._stood[place] = self._stood[place] * self._keep + (place < accepted)

    def fade(self) -> None:
        """A round in which nothing was judged: what was seen counts less, so that nobody is given up for good."""
        self._tried = [tried * self._keep for tried in self._tried]
        self._stood = [stood * self._keep for stood in self._stood]

    def rates(self, prior: Sequence[float]) -> list[float]:
        """That a draft stands if those before it do. Where little was seen `prior`'s, shifted as the one before was."""
        rates, shift = [], 1.0
        for place, usual in enumerate(prior):
            expected, seen = min(usual * shift, _CEILING), place < len(self._tried)
            tried, stood = (self._tried[place], self._stood[place]) if seen else (0.0, 0.0)
            rate = min((stood + _PRIOR_WEIGHT * expected) / (tried + _PRIOR_WEIGHT), _CEILING)
            rates.append(rate)
            shift = rate / usual
        return rates


class ModelAcceptance:
    """Of one model that drafts: the rates of all sequences together, and from there each one's own."""

    def __init__(self) -> None:
        self._all = Counts(_ALL_MEMORY)
        self._own: dict[int, Counts] = {}

    def observe(self, sequence_id: int, made: int, accepted: int, finished: bool) -> None:
        """What became of `made` drafts. Those that were not verified count as not accepted."""
        own = self._own.get(sequence_id)
        if own is None:
            own = self._own[sequence_id] = Counts(_OWN_MEMORY)
        judged = min(made, accepted if finished else accepted + 1)
        self._all.observe(judged, accepted)
        own.observe(judged, accepted)

    def rates(self, sequence_id: int, drafts: int) -> list[float]:
        rates = self._all.rates([_FIRST_GUESS] * drafts)
        own = self._own.get(sequence_id)
        return own.rates(rates) if own is not None else rates

    def pass_over(self, sequence_id: int) -> None:
        """Others drafted for the sequence in this round."""
        self._all.fade()
        if sequence_id in self._own:
            self._own[sequence_id].fade()

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
        if not steps:
            return None, 0.0
        worths = {name: self._worth(name, sequence_id, steps, sharing) for name in self.acceptance}
        best = max(worths, key=worths.__getitem__, default=None)
        return best, worths[best] if best is not None else 0.0

    def pass_over(self, sequence_id: int) -> None:
        """Nothing of the models was used for the sequence in this round."""
        for acceptance in self.acceptance.values():
            acceptance.pass_over(sequence_id)

    def forget(self, sequence_id: int) -> None:
        for acceptance in self.acceptance.values():
            acceptance.forget(sequence_id)

    def _worth(self, name: str, sequence_id: int, steps: int, sharing: int) -> float:
        _, worth = worth_of_rows(self.acceptance[name].rates(sequence_id, steps), self.prices.of_row())
        return worth - self.prices.of_drafting(name, steps) / max(sharing, 1)
