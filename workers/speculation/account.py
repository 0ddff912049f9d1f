"""What rounds took and what they brought, in one account: the cost model, the price of a second, and the ledgers.

Pure: seconds are given to it, and rounds of few seconds are taken in several at once. Knows no sequences.
"""

from collections.abc import Iterable
from typing import NamedTuple

from outrider.workers.engine.request import SpeculationFigures
from outrider.workers.speculation.cost import RoundCost, Shape
from outrider.workers.speculation.ledger import Ledger
from outrider.workers.speculation.price import Price, size_class

_MEASURING = 0.005  # of all time, what may be lost to measuring
_FIRST_CREDIT, _MOST_CREDIT = 2.0, 4.0  # undrafted rounds
_CLIP = 1.5  # a round costs at most this many times its forecast, and at least its inverse: noise is not speculation's
_HELD = 8.0  # undrafted rounds: time that may go by before the rounds in it are learned from, all at once
_PLAIN_SEEN = 32  # of rounds that speculation has no part in, one in so many is learned from
_BASE_EVERY, _BASE_SPARED = 64.0, 8.0  # rounds until some without drafts are measured again; more where drafts pay


class Took(NamedTuple):
    """A round that speculation had a part in, and what it brought."""

    shape: Shape
    tokens: int
    round_s: float  # to the verdict
    draft_s: float  # from there to the drafts
    decided_s: float  # of the time to the verdict, by deciding on drafts: without speculation there is none of it
    own: bool  # all its drafts were of the policy's choosing
    ledger: Ledger  # that of its size and heat


class Account:
    """Of one replica."""

    def __init__(self, experts: tuple[int, int], figures: SpeculationFigures) -> None:
        """`experts`: of a layer, and how many of them a token wakes. `figures` are told what there is to tell."""
        self.cost, self.price = RoundCost(experts), Price()
        self.figures = figures
        self._ledgers: dict[tuple[int, int], Ledger] = {}  # by size class and heat
        self.ledger: Ledger  # of the rounds at hand: see turn_to
        self.turn_to(1, 0)
        self._credit = _FIRST_CREDIT  # undrafted rounds that may be spent on measuring
        self._plain = 0  # rounds that speculation had no part in
        self._took: list[Took] = []  # the latest rounds, not learned from yet
        self._took_s = self._undrafted_s = 0.0  # of these rounds together; of one without drafts

    def turn_to(self, sequences: int, heat: int) -> None:
        """Rounds of about so many sequences are at hand: theirs is `ledger` from now on.

        What does not pay for many may pay for one, and what does not for drawn text may for greedy text. `heat`: as
        acceptance.Kind has it, of the hottest that live.
        """
        key = size_class(sequences), heat
        if key not in self._ledgers:
            self._ledgers[key] = Ledger()
        self.ledger = self._ledgers[key]
        self.figures.ledger, self.figures.stopped = self.ledger.level, self.ledger.stopped

    def base_due(self, sequences: int) -> bool:
        """Whether rounds without drafts are to be measured: the less drafts bring, the closer both are watched."""
        every = _BASE_EVERY * (1.0 + _BASE_SPARED * (self.price.gain(sequences) - 1.0))
        return self.cost.base_due(sequences, every)

    def spend(self, loss: float) -> bool:
        """Takes `loss` undrafted rounds from what may be spent on measuring, if that is left."""
        if loss > self._credit:
            return False
        self._credit -= loss
        return True

    def relative_price(self, base: Shape) -> float:
        """Tokens that one of the cost model's relative seconds is worth."""
        return self.price.per_second(base.sequences, self.cost.plain(base.sequences, base.context))

    def observe(self, took: Took) -> None:
        """Learns from a round of new size at once, else when a few have gone by: learning slows what is measured."""
        self._took.append(took)
        self._took_s += took.round_s + took.draft_s
        if not self.cost.base_known(took.shape.sequences) or self._took_s >= _HELD * self._undrafted_s:
            self._learn_times()

    def sleeps(self) -> bool:
        """Whether speculation is stopped, and the round at hand is none of those that are looked at even so."""
        return self.ledger.stopped and not self._took and (self._plain + 1) % _PLAIN_SEEN != 0

    def slept(self) -> None:
        """A round of decoding sequences went by that speculation had no part in, and that is not learned from."""
        self._plain += 1
        self.ledger.earn(1.0)

    def observe_base(self, rounds: Iterable[tuple[Shape, float]]) -> None:
        """Rounds without drafts, that were run to be measured: what they took."""
        for shape, round_s in rounds:
            self.cost.observe(shape, round_s, 0.0)
            self.price.observe(shape.sequences, shape.sequences, 1.0, 1.0)

    def observe_plain(self, shape: Shape, round_s: float, draft_s: float) -> None:
        """A round that speculation had no part in: it costs the ledger nothing."""
        if self._took:
            self._learn_times()
        self.slept()
        self.cost.observe(shape, round_s, draft_s)
        self.price.observe(shape.sequences, shape.sequences, 1.0, 1.0)
        self._undrafted_s = self.cost.undrafted(shape.sequences, shape.context)
        self.figures.depth -= 0.05 * self.figures.depth
        self._tell(shape)

    def _learn_times(self) -> None:
        for took in self._took:
            self._learn_time(took)
        self._tell(self._took[-1].shape)
        self._took, self._took_s = [], 0.0

    def _learn_time(self, round: Took) -> None:
        shape, took = round.shape, round.round_s + round.draft_s
        forecast = self.cost.forecast(shape) if self.cost.known else took
        self.cost.observe(shape, round.round_s - (0.0 if shape.ready else round.decided_s), round.draft_s)
        undrafted = self.cost.undrafted(shape.sequences, shape.context)
        if round.own:
            counted = min(max(took, forecast / _CLIP), _CLIP * forecast)
            self.price.observe(shape.sequences, round.tokens, counted, undrafted)
            round.ledger.settle(round.tokens / shape.sequences, counted / undrafted)
        self._credit = min(self._credit + _MEASURING * took / undrafted, _MOST_CREDIT)
        self._undrafted_s, told = undrafted, self.figures
        told.depth += 0.05 * ((shape.rows - shape.sequences) / shape.sequences - told.depth)
        told.forecast_error += 0.05 * (abs(took - forecast) / max(took, 1e-9) - told.forecast_error)

    def _tell(self, shape: Shape) -> None:
        """Of a round like this, learned from last."""
        told = self.figures
        told.gain = self.price.gain(shape.sequences)
        told.price = shape.sequences / self._undrafted_s * told.gain
        told.ledger, told.stopped = self.ledger.level, self.ledger.stopped
