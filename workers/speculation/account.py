"""What rounds took and what they brought, in one account: the cost model, the gain, and the ledgers.

Pure: seconds are given to it. Knows no sequences.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from outrider.workers.speculation.cost import Forecast, RoundCost
from outrider.workers.speculation.debts import Debts
from outrider.workers.speculation.gain import Gain, size_class
from outrider.workers.speculation.known_times import Shape
from outrider.workers.speculation.ledger import Ledger
from outrider.workers.types.counters import SpeculationFigures

_LIKELY = 1.5  # times its forecast that making drafts takes for the machine's mood alone
# A round costs at most so many times its forecast, and at least its inverse: noise is not speculation's. Neither is a
# wrong forecast: at most so many times what it took.
_CLIP = 1.5
_FAR = 4.0  # times as much or as little as was forecast of rounds that are known: then that is wrong
_RECENT = 0.2  # a round's weight in what rounds cost of late
_PLAIN_SEEN = 128  # rounds that speculation has no part in are learned from by so many


class Took(NamedTuple):
    """A round that speculation had a part in, and what it brought."""

    shape: Shape
    tokens: int
    round_s: float  # to the verdict
    draft_s: float  # from there to the drafts
    decided_s: float  # of the time to the verdict, by deciding on drafts and learning: no fault of the round's shape
    own: bool  # all its drafts were of the policy's choosing

    @property
    def plain(self) -> bool:
        """Whether it took no longer than a round that speculation has no part in, but for what was looked up."""
        return self.shape.undrafted and not self.shape.drafts and not self.shape.followed and not self.shape.ready


class Account:
    """Of one replica."""

    def __init__(self, cost: RoundCost, figures: SpeculationFigures) -> None:
        """`figures` are told what there is to tell."""
        self.cost, self.gain, self._debts = cost, Gain(), Debts()
        self._undrafted_s = 0.0  # of a round without drafts like the latest
        self.figures = figures
        self._ledgers: dict[tuple[int, int], Ledger] = {}  # by size class and heat
        self._turned_to = (-1, 0)
        self.ledger: Ledger  # of the rounds at hand: see turn_to
        self.turn_to(1, 0)
        self._plain: list[tuple[Shape, float]] = []  # the latest rounds that speculation had no part in
        self._fair = 1.0  # of what rounds took of late, what they are taken to cost: the rest is the machine's mood
        self._excess = 1.0  # what the round before took over its forecast: one is a disturbance, two are not
        self._usual: dict[int, float] = {}  # by size class: undrafted rounds that one with drafts took last

    def turn_to(self, sequences: int, heat: int) -> None:
        """Rounds of about so many sequences are at hand: theirs is `ledger` from now on.

        What does not pay for many may pay for one, and what does not for drawn text may for greedy text. `heat`: as
        acceptance.Kind has it, of the hottest that live.
        """
        key = size_class(sequences), heat
        if key == self._turned_to:
            self.figures.ledger, self.figures.stopped = self.ledger.level, self.ledger.stopped
            return
        self._turned_to = key
        if key not in self._ledgers:
            self._ledgers[key] = Ledger(key[0])
        self.ledger = self._ledgers[key]
        self.figures.ledger, self.figures.stopped = self.ledger.level, self.ledger.stopped

    def base_due(self, sequences: int, context: float) -> bool:
        """Whether rounds without drafts are to be measured: the less drafts bring, the closer both are watched."""
        return self.cost.base_due(sequences, context, self.gain.of(sequences))

    @property
    def unseen(self) -> int:
        """How many rounds may go by, while speculation is stopped, before one is to be looked at even so."""
        return max(_PLAIN_SEEN - 1 - len(self._plain), 0)

    def slept(self, rounds: Sequence[tuple[Shape, float]]) -> None:
        """Rounds of decoding sequences went by that speculation had no part in, and that are not looked at."""
        if self.ledger.stopped:
            self._plain += rounds
        self.ledger.earn(len(rounds))
        self._book(self._debts.due(len(rounds)))

    def meet(self, sequence_id: int, room: int) -> None:
        """A sequence came that says so many tokens at most."""
        self._debts.meet(sequence_id, room)

    def pledge(self, sequence_id: int, tokens: int, sequences: int) -> bool:
        """Takes it on to follow a prompt of so many tokens, if that, beside others, takes no more than may be lost.

        Of rounds of so many `sequences`. Whether it was taken on.
        """
        if self.ledger.stopped or not self.cost.known:
            return not self.ledger.stopped
        undrafted_s = self.cost.undrafted(sequences, float(sequences * tokens))
        affords = self._debts.with_prompt(tokens) <= self.ledger.level * undrafted_s
        if affords:
            self._debts.pledge(sequence_id, tokens)
        return affords

    def owe(self, sequence_id: int, tokens: int, took_s: float, *, ends: bool = False) -> None:
        """So many tokens of its prompt were followed in that time, which is booked over all that it says."""
        self._debts.owe(sequence_id, tokens, took_s, ends=ends)

    def forget(self, sequence_id: int) -> None:
        """It ended: what is not booked yet is now."""
        self._book(self._debts.forget(sequence_id))

    def _book(self, seconds: float) -> None:
        if seconds and self._undrafted_s:
            self.ledger.pay(seconds / self._undrafted_s)

    def observe_base(self, rounds: Sequence[tuple[Shape, float]]) -> None:
        """Rounds without drafts, that were run to be measured: what they took."""
        if rounds:
            self.cost.measured(rounds)

    def observe_plain(self, shape: Shape, round_s: float) -> None:
        """A round that speculation had no part in, and that is looked at: it costs the ledger nothing."""
        self.slept([(shape, round_s)])
        self.figures.depth *= 0.95 ** len(self._plain)
        self._learn_plain()
        self.gain.observe(shape.sequences, shape.sequences, 1.0)
        self._undrafted_s = self.cost.undrafted(shape.sequences, shape.context)
        self._tell(shape.sequences)

    def _learn_plain(self) -> None:
        """What the rounds of a stop took."""
        if self._plain:
            self.cost.rested(self._plain)
            self._plain = []

    def most(self, sequences: int) -> float:
        """Undrafted rounds that one with drafts is taken to last at most, before the machine's mood is taken off."""
        return _CLIP * self._usual.get(size_class(sequences), math.inf) / self._fair

    def count(self, sequences: int, rounds: int, worth: float, took: float) -> None:
        """Rounds of drafts brought each sequence the tokens of `worth` undrafted rounds, in the time of `took`.

        Of their time nothing is learned.
        """
        counted = self._fair * took
        self.gain.observe(sequences, worth * sequences, counted, rounds)
        self.ledger.settle(worth, counted)
        self._book(self._debts.due(worth))

    def observe(self, round: Took) -> None:
        """Learns from a round that speculation had a part in."""
        self._learn_plain()
        shape, verify_s = round.shape, round.round_s - round.decided_s
        clear_s = verify_s + round.draft_s
        forecast = self.cost.observe(shape, verify_s, round.draft_s)
        undrafted = self.cost.undrafted(shape.sequences, shape.context)
        if round.own:
            looking_s = min(round.draft_s, undrafted)  # of a round without drafts: what was looked up in vain
            took_s = undrafted + looking_s if round.plain else self._clipped(forecast, verify_s, round.draft_s)
            counted = (took_s + round.decided_s) / undrafted
            if not shape.undrafted:
                self._fair += _RECENT * (min(max(took_s / clear_s, 1.0 / _CLIP), _CLIP) - self._fair)
                self._usual[size_class(shape.sequences)] = counted
            self.gain.observe(shape.sequences, round.tokens, counted)
            self._undrafted_s, worth = undrafted, round.tokens / shape.sequences
            self.ledger.settle(worth, counted)
            self._book(self._debts.due(worth))
        told = self.figures
        told.depth += 0.05 * ((shape.rows - shape.sequences) / shape.sequences - told.depth)
        told.forecast_error += 0.05 * (abs(clear_s - forecast.whole_s) / max(clear_s, 1e-9) - told.forecast_error)
        if round.own:
            self._tell(shape.sequences)

    def _clipped(self, forecast: Forecast, verify_s: float, draft_s: float) -> float:
        """Seconds of a round but for the machine's mood and disturbances, which are not speculation's."""
        if forecast.sure:
            verify_s = min(max(forecast.verify_s, verify_s / _FAR), _FAR * verify_s)
            if forecast.draft_s / _LIKELY < draft_s < _LIKELY * forecast.draft_s:
                draft_s = forecast.draft_s
        took_s, most = verify_s + draft_s, _CLIP * forecast.whole_s * self._excess
        least = min(forecast.whole_s / _CLIP, _CLIP * took_s)
        self._excess = max(took_s / forecast.whole_s, 1.0)
        return min(max(took_s, least), most)

    def _tell(self, sequences: int) -> None:
        """Of a round of so many, learned from last."""
        self.figures.gain = self.gain.of(sequences)
        self.figures.ledger, self.figures.stopped = self.ledger.level, self.ledger.stopped
