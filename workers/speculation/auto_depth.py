"""Depth by the price of time: how many tokens to draft for each sequence, and which of the drafts to verify.

Joins what is believed of acceptance, of rounds' time and of the price of a second, and keeps the ledger that bounds
what speculation may lose. Deep where text is easy or the engine idle, shallow where it is not, off where drafts do not
pay: all of it follows from the price. Pure: reads no clock, and the text never depends on it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from outrider.workers.engine.request import SpeculationFigures
from outrider.workers.speculation.acceptance import Acceptance, Made
from outrider.workers.speculation.account import Account, Took
from outrider.workers.speculation.alarms import Alarms
from outrider.workers.speculation.base_rounds import CALM
from outrider.workers.speculation.cost import HELD, RoundCost
from outrider.workers.speculation.hope import Hope
from outrider.workers.speculation.known_times import Shape
from outrider.workers.speculation.ledger import Ledger
from outrider.workers.speculation.looked_up import NOTHING
from outrider.workers.speculation.patience import ENDLESS, Patience
from outrider.workers.speculation.planning import Worth
from outrider.workers.speculation.undisturbed import Undisturbed
from outrider.workers.speculation.worths import Live, Worths

DEEPEST = 8
_CAUTION = 0.02  # of a round's tokens, what drafts must bring above their price to begin with them; to go on, nothing
_MOST_TAUGHT = 2  # sequences of a round whose acceptance is learned from, in turn
_MOST_IN_VAIN = 8  # rounds in a row for which drafts are made and none is verified
_TRY_RISK = 0.5  # undrafted rounds that must be left to try a sequence that promises nothing
_PAID_AHEAD = 0.4  # undrafted rounds that are paid at once where drafts do not pay, for as many rounds as that lasts
_LEAST_AT_A_LOSS, _MOST_AT_A_LOSS = 4, 16  # of these
_HELD_IDLE = 4  # rounds that depths hold for where no drafts are made
_MOST_ASLEEP = 16  # rounds that speculation has no part in, and that are not looked at

_Item = TypeVar("_Item")


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


class Ahead(NamedTuple):
    """Rounds of a lane that were paid for at once."""

    rounds: int
    loss: float  # of each
    ledger: Ledger  # that paid


class AutoDepth:
    """Decides for the sequences of one replica. Not thread-safe."""

    def __init__(self, deepest: int = DEEPEST, cost: RoundCost | None = None, *, every_step: bool = False) -> None:
        """`cost`: what is known of rounds' time already. `every_step`: all up to the deepest are run, whoever stops."""
        self.acceptance, self.alarms = Acceptance(max(deepest, 1)), Alarms()
        self.account = Account(cost or RoundCost(), SpeculationFigures(alarms=self.alarms.counts))
        self.figures, self.cost = self.account.figures, self.account.cost
        self.warnings: list[str] = []  # to be said once, and not said yet
        self._deepest, self._every_step = deepest, every_step
        self._ahead: dict[int, Ahead] = {}  # by lane
        self._hopes: dict[int, Hope] = {}
        self._depths: dict[int, int] = {}
        self._patience: dict[int, Patience] = {}
        self._trying: set[int] = set()  # sequences whose next draft is to be verified whatever it is worth
        self._calm = 0  # rounds in a row in which nothing was drafted
        self._asleep = self._slept = 0  # rounds until anybody is followed again; that went by so since the last plan
        self._undisturbed = Undisturbed()
        self.worths = Worths(self.acceptance, self.cost, deepest, every_step=every_step)
        self._in_vain = 0  # rounds in a row of whose drafts none was verified
        self._pays: Ledger | None = None  # of rounds in which drafts paid when depths were set last
        self._planned = True  # depths were set, and no drafts judged since
        self._turn = self._passed = 0  # rounds whose acceptance was learned from; some of whose drafts were passed over

    def __len__(self) -> int:
        """Sequences that it keeps something of."""
        return max(len(self._hopes), len(self.acceptance))

    def depth(self, sequence_id: int) -> int:
        """Most drafts to make for the sequence after the round that is being composed."""
        return self._depths.get(sequence_id, 0)

    def patience(self, sequence_id: int) -> Patience:
        """When drafting for it ends before that depth."""
        return self._patience.get(sequence_id, ENDLESS)

    def follows(self, sequence_id: int) -> bool:
        """Whether the drafter should take in the sequence's tokens."""
        if self.account.ledger.stopped:
            return False
        if self._depths.get(sequence_id):
            return True
        hope = self._hopes.get(sequence_id)
        return (hope is None or hope.followed) and not self.worths.found.carries(sequence_id)

    @property
    def resting(self) -> bool:
        """Whether nobody is to draft at present, whatever it would cost."""
        return self.account.ledger.stopped or self._undisturbed.wanted

    def sleeps(self) -> int:
        """How many rounds from now on need not be looked at if speculation has no part in them."""
        if self.account.ledger.stopped:
            return self.account.unseen
        return self._asleep or self._undisturbed.missing

    def slept(self, rounds: Sequence[tuple[Shape, float]]) -> None:
        """Such rounds went by: their shapes, and their seconds."""
        if not self.account.ledger.stopped:
            self._undisturbed.add(rounds)
        self.account.slept(rounds)
        self._calm += len(rounds)
        through = min(self._asleep, len(rounds))
        self._asleep -= through
        self._slept += through

    def meet(self, newcomer: Live, room: int, *, followed: int = 0, sequences: int = 1) -> None:
        """A sequence came that says `room` tokens at most, in rounds of so many sequences.

        Its prompt is about to be read, `followed` tokens of which models would take in. Where drafts pay it has some
        from its first token on; elsewhere it is followed if there is that much to lose.
        """
        self._asleep = 0
        sequence_id, kind, _ = newcomer
        self.account.meet(sequence_id, room)
        pays = self._pays is self.account.ledger
        if not pays and not self.account.affords_prompt(sequence_id, followed, sequences):
            self._hope(sequence_id).let_go()
        elif pays and not self.resting and not self._every_step:
            carried = self.worths.found.carries(sequence_id)
            if not carried and self.worths.model(sequence_id, kind, self._deepest, sharing=1) > 0.0:
                self._depths[sequence_id] = self._deepest
                self._patience[sequence_id] = self.worths.patience(newcomer)

    def plan(
        self,
        live: Sequence[Live],
        plain: Shape | None = None,
        *,
        lane: int = 0,
        measurable: bool | None = True,
        rounds: int = 1,
    ) -> int:
        """Sets the depths of these sequences, which share the lane's rounds. For how many rounds they may hold.

        `plain`: such a round without drafts, in which others may be that have a depth of their own; None: it holds
        these alone. `measurable`: whether it could be measured so; None: not now, a prompt is being read. `rounds`:
        that went by since they were set last.
        """
        plain, self._planned = plain or _plain(live), True
        self._wake_up()
        self._settle_ahead(lane, rounds)
        if measurable is not None:
            due = measurable and self.account.base_due(plain.sequences, plain.context)
            takes_s = self.cost.undrafted(plain.sequences, plain.context) if due and self.cost.known else 0.0
            self._undisturbed.want(lane, due, takes_s)
        found = NOTHING
        self._tell_price(plain, 1.0)
        if not self.resting:
            found = self.worths.price_of(live, plain)
        if self.resting or not self._deepest:
            self._rest([each.sequence_id for each in live])
            return 1
        hopes = [self._hope(each.sequence_id) for each in live]
        if not any(hope.followed for hope in hopes):
            self._pays = None
            self._try({each.sequence_id: hope for each, hope in zip(live, hopes, strict=True)}, live[0], plain, rounds)
            self._sleep(self.worths.trying(live[0], 1, plain))
            return 1
        worth = self.worths.best_depths(live, plain, found)
        self._tell_price(plain, self.worths.promise)
        caution = 0.0 if self._pays is self.account.ledger else _CAUTION * (plain.sequences + worth.brings)
        pays, loss = worth.gain > caution, (caution - worth.gain) / plain.sequences  # a round
        self._pays = self.account.ledger if pays else None
        might = worth.gain + sum(worth.depths) > worth.brings  # pay, if all drafts stood
        open_to_it = might and found.share < 0.5 * len(live)  # else models would hardly have a round
        drafts = pays or (open_to_it and self._pay_ahead(lane, loss))
        without = {}
        for each, hope, depth in zip(live, hopes, worth.depths, strict=True):
            if pays and depth:
                hope.worth()
            if drafts and depth:
                self._depths[each.sequence_id] = self._deepest if pays and not self._every_step else depth
                self._patience[each.sequence_id] = self.worths.patience(each)
                if not pays:  # then it is to be seen at least whether the first stands
                    self._trying.add(each.sequence_id)
            else:
                without[each.sequence_id] = hope
        self._try(without, live[0], plain, rounds)
        if drafts and not pays:
            return self._ahead[lane].rounds
        return 1 if self._trying else HELD if drafts else _HELD_IDLE

    def _tell_price(self, plain: Shape, promise: float) -> None:
        if self.cost.known:
            self.figures.price = promise * plain.sequences / self.cost.undrafted(plain.sequences, plain.context)

    def _rest(self, sequence_ids: Sequence[int]) -> None:
        """Nobody drafts; who came while nobody is followed is asked no sooner than others that were let go."""
        self._pays = None
        for each in sequence_ids:
            self._depths[each] = 0
            if self.account.ledger.stopped and each not in self._hopes:
                self._hope(each).let_go()

    def _pay_ahead(self, lane: int, loss: float) -> bool:
        """Pays for some rounds that each should lose so much, if that can be afforded."""
        rounds = min(max(int(_PAID_AHEAD / max(loss, 1e-9)), _LEAST_AT_A_LOSS), _MOST_AT_A_LOSS)
        if not self.account.ledger.spend(rounds * loss):
            return False
        self._ahead[lane] = Ahead(rounds, loss, self.account.ledger)
        return True

    def _settle_ahead(self, lane: int, rounds: int) -> None:
        """Gives back what was paid for more rounds at a loss than went by."""
        ahead = self._ahead.pop(lane, None)
        if ahead is not None and ahead.rounds > rounds:
            ahead.ledger.refund((ahead.rounds - rounds) * ahead.loss)

    def _sleep(self, takes: float) -> None:
        """Nobody in the lane is followed: where that goes for all, few rounds are looked at until it ends.

        `takes`: undrafted rounds, to try one sequence.
        """
        until_due = min([hope.waits for hope in self._hopes.values()])
        if until_due:
            until_due = max(until_due, self.account.ledger.until_affords_to_measure(takes))
        self._asleep = min(until_due, _MOST_ASLEEP)

    def _wake_up(self) -> None:
        """Counts the rounds that were slept through."""
        if self._slept:
            for hope in self._hopes.values():
                hope.passed(self._slept)
        self._asleep = self._slept = 0

    def idle(self, lane: int) -> None:
        """No sequence of the lane decodes at present."""
        self._undisturbed.leave(lane)

    def _try(self, without: Mapping[int, Hope], like: Live, plain: Shape, rounds: int) -> None:
        """A draft for each of those `without` any that it is time to try, if that can be afforded for all at once.

        What starts drafting is the same for one as for many. None for those that lookup carries.
        """
        carried = self.worths.found.carries
        due = [each for each, hope in without.items() if hope.due and not carried(each)]
        takes = self.worths.trying(like, max(len(due), 1), plain)
        affords = self.account.ledger.affords(_TRY_RISK) and self.account.ledger.affords_to_measure(takes)
        tried = set(due) if affords else set[int]()
        if tried:
            self.account.ledger.spend(takes)
            self._trying |= tried
        for each, hope in without.items():
            self._depths[each] = int(each in tried)
            if each in tried:
                hope.tried()
            elif not carried(each):
                hope.passed(rounds, trial=affords)

    def keep(self, made: Sequence[Made], base: Shape) -> list[int]:
        """How many leading drafts of each to verify. `base`: the round that they would join, without them.

        Each has at least one draft. Remembers them, to learn from what becomes of them.
        """
        worth = self.worths.slots(made, base)
        if self.resting:
            return [0] * len(made)
        counts = worth.counts
        if self._planned:  # it is asked once for as long as depths hold
            self._planned, counts = False, self._measured(worth, made, base)
        if self._trying:
            counts = self._also_tried(counts, made)
        if all(counts):
            self._in_vain = 0
            return counts
        counts = self._not_in_vain(counts)
        self._passed += 1
        for each in _in_turn([each for each, count in zip(made, counts, strict=True) if not count], self._passed):
            self.acceptance.passed_over(each.sequence_id)
        return counts

    def _not_in_vain(self, counts: list[int]) -> list[int]:
        """The counts, or a draft of each where none was worth verifying for long: else nothing would be learned."""
        self._in_vain = 0 if any(counts) else self._in_vain + 1
        if self._in_vain < _MOST_IN_VAIN or not self.account.ledger.affords(_TRY_RISK):
            return counts
        self._in_vain = 0
        return [1] * len(counts)

    def _also_tried(self, counts: list[int], made: Sequence[Made]) -> list[int]:
        """The counts, and of a sequence that is tried its draft too, which else would tell nothing."""
        counts = [
            max(count, 1) if each.sequence_id in self._trying else count
            for count, each in zip(counts, made, strict=True)
        ]
        self._trying.difference_update([each.sequence_id for each in made])
        return counts

    def _measured(self, worth: Worth, made: Sequence[Made], base: Shape) -> list[int]:
        """The best counts, or all where such a round has not been seen for long and costs little."""
        lost = (worth.best - worth.every) / base.sequences  # undrafted rounds, or less
        if lost <= 0.0:
            return worth.counts
        whole = [len(each.leads) for each in made]
        if not self.cost.stale(base.rows + sum(whole)) or not self.account.ledger.spend(lost):
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
        made: Mapping[int, Made] | None = None,
    ) -> None:
        """Learns from a round of decoding sequences alone, that emitted `tokens`, and from what was drafted after it.

        `round_s`: to the verdict, `decided_s` of it by deciding; `draft_s`: from there to the drafts. `own`: all its
        drafts were of this one's choosing, so that what they won or lost goes into the ledger. `made`: what `take`
        gave when the round had run; None: it ran just now.
        """
        plain = shape.undrafted and not shape.drafts
        self._calm = self._calm + 1 if plain else 0
        if plain and self.account.ledger.stopped:
            self.account.observe_plain(shape, round_s)
            return
        if plain:
            self._undisturbed.add([(shape._replace(followed=0), round_s)])
        if not plain or (self._undisturbed.wanted and not self._undisturbed.missing):
            self.account.observe_base(self._undisturbed.take())
        self.learn_acceptance(outcomes, made)
        ready = self._calm < CALM
        self.account.observe(Took(shape._replace(ready=ready), tokens, round_s, draft_s, decided_s, own))

    def take(self, sequence_ids: Iterable[int]) -> dict[int, Made]:
        """The drafts that a round of these sequences had, for when it is learned from: later ones take their place."""
        return self.acceptance.take(sequence_ids)

    def learn_acceptance(self, outcomes: Sequence[Outcome], made: Mapping[int, Made] | None = None) -> None:
        """The same from a round whose time is not comparable: it held prompt chunks."""
        if made is None:
            made = self.take([each.sequence_id for each in outcomes])
        judged = [each for each in outcomes if each.judged and each.sequence_id in made]
        if not judged:
            return
        for each in judged:
            hope = self._hopes.get(each.sequence_id)
            if each.accepted and hope is not None and hope.idle:
                hope.stood()
                self.account.ledger.refund(each.accepted / len(outcomes))
        self._turn += 1
        watched = judged[self._turn % len(judged)]
        self.warnings += self.alarms.judged(
            made[watched.sequence_id], watched.judged, watched.accepted, gap=watched.gap
        )
        taught = _in_turn(judged, self._turn)
        self.acceptance.observe([(made[each.sequence_id], each.judged, each.accepted, not each.gap) for each in taught])

    def forget(self, sequence_id: int) -> None:
        """Drops what is kept for a sequence that ended."""
        self._hopes.pop(sequence_id, None)
        self._depths.pop(sequence_id, None)
        self._patience.pop(sequence_id, None)
        self._trying.discard(sequence_id)
        self.worths.found.forget(sequence_id)
        self.account.forget(sequence_id)
        self.acceptance.forget(sequence_id)

    def _hope(self, sequence_id: int) -> Hope:
        if sequence_id not in self._hopes:
            self._hopes[sequence_id] = Hope()
        return self._hopes[sequence_id]


def _in_turn(items: Sequence[_Item], turn: int) -> Sequence[_Item]:
    """As many of them as are learned from in one round: others in the next turn."""
    stride = max(-(-len(items) // _MOST_TAUGHT), 1)
    return items[turn % stride :: stride]


def _plain(live: Sequence[Live]) -> Shape:
    context = float(sum([each.context for each in live]))
    return Shape(len(live), len(live), context, context)
