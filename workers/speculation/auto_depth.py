"""Depth by the price of time: how many tokens to draft for each sequence, and which of the drafts to verify.

Joins what is believed of acceptance, of rounds' time and of the price of a second, and keeps the ledger that bounds
what speculation may lose. Deep where text is easy or the engine idle, shallow where it is not, off where drafts do not
pay: all of it follows from the price. Pure: reads no clock, and the text never depends on it.
"""

from collections.abc import Sequence
from itertools import accumulate
from operator import mul
from typing import NamedTuple

import numpy as np

from outrider.workers.engine.request import SpeculationFigures
from outrider.workers.speculation.acceptance import Acceptance, Kind, Made
from outrider.workers.speculation.account import Account, Took
from outrider.workers.speculation.alarms import Alarms
from outrider.workers.speculation.cost import BASE_ROUNDS, Shape
from outrider.workers.speculation.hope import Hope
from outrider.workers.speculation.planning import (
    Depths,
    DraftSeconds,
    Worth,
    depth_worth_alone,
    depths_worth,
    slots_worth,
    slots_worth_alone,
    worth_of_rows,
)

DEEPEST = 8
_CAUTION = 1.02  # what a second must bring with drafts over what it brings without
_MOST_WATCHED = 4  # sequences of a round whose drafts are looked at for signs of a fault
_MOST_TAUGHT = 16  # sequences of a round whose acceptance is learned from, in turn
_TOKENS_FOLLOWED = 1.5  # a round, of a sequence: about
_TRY_RISK = 0.5  # undrafted rounds that must be left to try a sequence that promises nothing
_CALM = 4  # the first rounds without drafts are slower than those that follow
_MOST_ASLEEP = 16  # rounds that speculation has no part in, and that are not looked at
_WOKEN = 4  # sequences that are tried when a stop is over


class Live(NamedTuple):
    """A sequence that may draft next."""

    sequence_id: int
    kind: Kind
    context: int  # tokens


class Outcome(NamedTuple):
    """What became of one decoding sequence in a round."""

    sequence_id: int
    verified: int  # drafts
    accepted: int
    finished: bool = False
    gap: bool = False  # the drafter had not followed all of it

    @property
    def judged(self) -> int:
        """Drafts that got an answer: those accepted and the first that was not, which an end may leave open."""
        return self.accepted if self.finished else min(self.verified, self.accepted + 1)


class AutoDepth:
    """Decides for the sequences of one replica. Not thread-safe."""

    def __init__(self, deepest: int = DEEPEST, experts: tuple[int, int] = (1, 1)) -> None:
        """`experts`: of a layer, and how many of them a token wakes."""
        self.acceptance, self.alarms = Acceptance(max(deepest, 1)), Alarms()
        self.account = Account(experts, SpeculationFigures(alarms=self.alarms.counts))
        self.figures, self.cost = self.account.figures, self.account.cost
        self.warnings: list[str] = []  # to be said once, and not said yet
        self._deepest = deepest
        self._hopes: dict[int, Hope] = {}
        self._depths: dict[int, int] = {}
        self._trying: set[int] = set()  # sequences whose next draft is to be verified whatever it is worth
        self._calm = 0  # rounds in a row in which nothing was drafted
        self._asleep = self._slept = 0  # rounds until anybody is followed again; that went by so since the last plan
        self._undisturbed: list[
            tuple[Shape, float]
        ] = []  # rounds without drafts, measured with nothing done beside them
        self._measuring = set[int]()  # lanes in which rounds without drafts are to be known before others are weighed
        self._price = self._row_price = 0.0  # tokens that a relative second, and a further row, must bring
        self._turn = 0  # rounds whose acceptance was learned from

    def __len__(self) -> int:
        """Sequences that it keeps something of."""
        return max(len(self._hopes), len(self.acceptance))

    def depth(self, sequence_id: int) -> int:
        """Drafts to make for the sequence after the round that is being composed."""
        return self._depths.get(sequence_id, 0)

    def follows(self, sequence_id: int) -> bool:
        """Whether the drafter should take in the sequence's tokens."""
        if self.account.ledger.stopped:
            return False
        hope = self._hopes.get(sequence_id)
        return hope is None or hope.followed

    @property
    def resting(self) -> bool:
        """Whether nobody is to draft at present, whatever it would cost."""
        return self.account.ledger.stopped or len(self._measuring) > 0

    def sleeps(self) -> bool:
        """Whether the round at hand, in which speculation had no part, is none of those that are looked at even so."""
        if self.account.ledger.stopped:
            return self.account.sleeps()
        return self._asleep > 0 or (len(self._measuring) > 0 and len(self._undisturbed) < _CALM + BASE_ROUNDS)

    def slept(self, shape: Shape, round_s: float) -> None:
        """Such a round went by."""
        self.account.slept()
        self._calm += 1
        if self._measuring and not self.account.ledger.stopped:
            self._undisturbed.append((shape, round_s))
        if self._asleep:
            self._asleep -= 1
            self._slept += 1

    def meet(self) -> None:
        """A sequence came."""
        self._asleep = 0

    def plan(self, live: Sequence[Live], plain: Shape | None = None, *, lane: int = 0, measurable: bool = True) -> None:
        """Sets the depths of these sequences, which share the lane's rounds.

        `plain`: such a round without drafts, in which others may be that have a depth of their own; None: it holds
        these alone. `measurable`: whether it could be measured so.
        """
        plain = plain or _plain(live)
        self._wake_up()
        if measurable and self.account.base_due(plain.sequences):
            self._measuring.add(lane)
        else:
            self._measuring.discard(lane)
        if not self.resting:
            self._set_prices(plain)
            self._wake()
        if self.resting or not self._deepest:
            self._depths.update((each.sequence_id, 0) for each in live)
            return
        hopes = [self._hope(each.sequence_id) for each in live]
        if not any(hope.followed for hope in hopes):
            for each, hope in zip(live, hopes, strict=True):
                self._depths[each.sequence_id] = self._tried(each.sequence_id, hope)
            self._sleep()
            return
        worth = self._worthwhile_depths(live, plain)
        pays = worth.gain > 0.0
        drafts = pays or self.account.spend(-worth.gain / plain.sequences)
        for each, hope, depth in zip(live, hopes, worth.depths, strict=True):
            if pays and depth:
                hope.worth()
            self._depths[each.sequence_id] = depth if drafts and depth else self._tried(each.sequence_id, hope)

    def _sleep(self) -> None:
        """Nobody in the lane is followed: where that goes for all, few rounds are looked at until it ends."""
        self._asleep = min([_MOST_ASLEEP, *[hope.waits for hope in self._hopes.values()]])

    def _wake_up(self) -> None:
        """Counts the rounds that were slept through."""
        if self._slept:
            for hope in self._hopes.values():
                hope.passed(self._slept)
        self._asleep = self._slept = 0

    def idle(self, lane: int) -> None:
        """No sequence of the lane decodes at present."""
        self._measuring.discard(lane)

    def _wake(self) -> None:
        """After a stop: a few sequences are tried first, since their drafts alone can tell whether it pays again."""
        if self.account.ledger.resumed():
            for hope in list(self._hopes.values())[:_WOKEN]:
                hope.wake()

    def _set_prices(self, plain: Shape) -> None:
        self._price = _CAUTION * self.account.relative_price(plain)
        row = self.cost.further_row(plain.rows) + self.cost.slot(plain.context / plain.sequences)
        self._row_price = self._price * row

    def looked_up(self, chances: Sequence[float]) -> tuple[int, float]:
        """How many looked-up drafts are worth their rows, and what they bring above that, in tokens.

        `chances`: of each that it stands if those before it do.
        """
        return worth_of_rows(accumulate(chances, mul), self._row_price)

    def model_worth(self, sequence_id: int, kind: Kind, steps: int, sharing: int) -> float:
        """What `steps` drafts of the kind's model bring above their rows and their making, in tokens.

        `sharing`: how many sequences draft together, and share the steps.
        """
        survivals = self.acceptance.foreseen_alone(sequence_id, kind)[:steps]
        _, _, first, step, draft = self.cost.drafting(kind.drafter).coefficients
        making = (first + step * steps) / max(sharing, 1) + draft * steps
        return worth_of_rows(survivals, self._row_price)[1] - self._price * making

    def _worthwhile_depths(self, live: Sequence[Live], plain: Shape) -> Depths:
        price = self._price
        drafting = self._draft_seconds(live[0].kind.drafter, len(live))
        more_rows = self.cost.more_rows(plain.rows, len(live) * self._deepest)
        if len(live) == 1:
            survivals = self.acceptance.foreseen_alone(live[0].sequence_id, live[0].kind)
            return depth_worth_alone(survivals, self.cost.slot(live[0].context), more_rows.tolist(), drafting, price)
        slot_s = np.array([self.cost.slot(each.context) for each in live])
        foreseen = self.acceptance.foreseen([(each.sequence_id, each.kind) for each in live])
        return depths_worth(foreseen, slot_s, more_rows, drafting, price)

    def _draft_seconds(self, drafter: str, sequences: int) -> DraftSeconds:
        """The upkeep of the sequences is part of it: what does not pay for that is not worth following."""
        following, token, first, step, draft = self.cost.drafting(drafter).coefficients
        upkeep = self.cost.readiness + following + _TOKENS_FOLLOWED * token * sequences
        return DraftSeconds(first + upkeep, step, draft)

    def _tried(self, sequence_id: int, hope: Hope) -> int:
        """A draft, if it is time to try a sequence for which none is worth it."""
        if hope.due and self.account.ledger.affords(_TRY_RISK):
            hope.tried()
            self._trying.add(sequence_id)
            return 1
        hope.passed()
        return 0

    def keep(self, made: Sequence[Made], base: Shape) -> list[int]:
        """How many leading drafts of each to verify. `base`: the round that they would join, without them.

        Each has at least one draft. Remembers them, to learn from what becomes of them.
        """
        more_rows = self.cost.more_rows(base.rows, sum([len(each.leads) for each in made]))
        price = _CAUTION * self.account.relative_price(base)
        slot_s = self.cost.slot(base.context / base.sequences)
        if len(made) == 1:
            survivals = self.acceptance.judged_alone(made[0])
            worth = slots_worth_alone(survivals, slot_s, more_rows.tolist(), price)
        else:
            worth = slots_worth(self.acceptance.judged(made), np.full(len(made), slot_s), more_rows, price)
        return [0] * len(made) if self.resting else self._also_tried(self._measured(worth, made, base), made)

    def _also_tried(self, counts: list[int], made: Sequence[Made]) -> list[int]:
        """The counts, and of a sequence that is tried its draft too, which else would tell nothing."""
        if not self._trying:
            return counts
        counts = [
            max(count, 1) if each.sequence_id in self._trying else count
            for count, each in zip(counts, made, strict=True)
        ]
        self._trying.difference_update([each.sequence_id for each in made])
        return counts

    def _measured(self, worth: Worth, made: Sequence[Made], base: Shape) -> list[int]:
        """The best counts, or all where such a round has not been seen for long and costs little."""
        whole = [len(each.leads) for each in made]
        lost = (worth.best - worth.every) / base.sequences  # undrafted rounds, or less
        if whole == worth.counts or not self.cost.stale(base.rows + sum(whole)) or not self.account.spend(lost):
            return worth.counts
        return whole

    def observe(
        self,
        outcomes: Sequence[Outcome],
        shape: Shape,
        tokens: int,
        round_s: float,
        draft_s: float,
        decided_s: float = 0.0,
        *,
        own: bool = True,
    ) -> None:
        """Learns from a round of decoding sequences alone, that emitted `tokens`, and from what was drafted after it.

        `round_s`: to the verdict, `decided_s` of it by deciding; `draft_s`: from there to the drafts. `own`: all its
        drafts were of this one's choosing, so that what they won or lost goes into the ledger.
        """
        self._calm = self._calm + 1 if shape.undrafted and not shape.drafts else 0
        if self._undisturbed:
            self.account.observe_base(self._undisturbed[_CALM:])
            self._undisturbed = []
        if self.account.ledger.stopped and shape.undrafted and not shape.drafts:
            self.account.observe_plain(shape, round_s, draft_s)
            return
        self.learn_acceptance(outcomes)
        ready = self._calm < _CALM
        took = Took(shape._replace(ready=ready), tokens, round_s, draft_s, decided_s, own, self.account.ledger)
        self.account.observe(took)

    def learn_acceptance(self, outcomes: Sequence[Outcome]) -> None:
        """The same from a round whose time is not comparable: it held prompt chunks."""
        for each in outcomes[:_MOST_WATCHED]:
            made = self.acceptance.pending(each.sequence_id)
            if made is not None and each.judged:
                self.warnings += self.alarms.judged(made, each.judged, each.accepted, gap=each.gap)
            hope = self._hopes.get(each.sequence_id)
            if each.accepted and made is not None and hope is not None:
                hope.stood()
        stride = max(-(-len(outcomes) // _MOST_TAUGHT), 1)
        self._turn += 1
        taught = outcomes[self._turn % stride :: stride]
        self.acceptance.observe([(each.sequence_id, each.judged, each.accepted) for each in taught])
        if stride > 1:
            self.acceptance.pass_over([each.sequence_id for each in outcomes])

    def forget(self, sequence_id: int) -> None:
        """Drops what is kept for a sequence that ended."""
        self._hopes.pop(sequence_id, None)
        self._depths.pop(sequence_id, None)
        self._trying.discard(sequence_id)
        self.acceptance.forget(sequence_id)

    def _hope(self, sequence_id: int) -> Hope:
        if sequence_id not in self._hopes:
            self._hopes[sequence_id] = Hope()
        return self._hopes[sequence_id]


def _plain(live: Sequence[Live]) -> Shape:
    context = float(sum([each.context for each in live]))
    return Shape(len(live), len(live), context, context)
