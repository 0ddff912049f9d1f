"""Depth by the price of time: how many tokens to draft for each sequence, and which of the drafts to verify.

Joins what is believed of acceptance, of rounds' time and of the price of a second, and keeps the ledger that bounds
what speculation may lose. Deep where text is easy or the engine idle, shallow where it is not, off where drafts do not
pay: all of it follows from the price. Pure: reads no clock, and the text never depends on it.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

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
from outrider.workers.speculation.trials import Trials
from outrider.workers.speculation.undisturbed import Undisturbed
from outrider.workers.speculation.worths import Live, Worths
from outrider.workers.types.counters import SpeculationFigures

DEEPEST = 8
_CAUTION = 0.02  # of a round's tokens, what drafts must bring above their price to begin with them; to go on, nothing
_MOST_TAUGHT = 2  # sequences of a round whose acceptance is learned from, in turn
_HELD_IDLE = 4  # rounds that depths hold for where no drafts are made

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


class AutoDepth:
    """Decides for the sequences of one replica. Not thread-safe."""

    def __init__(self, deepest: int = DEEPEST, cost: RoundCost | None = None, *, every_step: bool = False) -> None:
        """`cost`: what is known of rounds' time already. `every_step`: all up to the deepest are run, whoever stops."""
        self.acceptance, self.alarms = Acceptance(max(deepest, 1)), Alarms()
        self.account = Account(cost or RoundCost(), SpeculationFigures(alarms=self.alarms.counts))
        self.figures, self.cost = self.account.figures, self.account.cost
        self.warnings: list[str] = []  # to be said once, and not said yet
        self._deepest, self._every_step = deepest, every_step
        self._depths: dict[int, int] = {}
        self._patience: dict[int, Patience] = {}
        self._calm = 0  # rounds in a row in which nothing was drafted
        self._undisturbed = Undisturbed()
        self.worths = Worths(self.acceptance, self.cost, deepest, every_step=every_step)
        self.trials = Trials(self.account)
        self._pays: Ledger | None = None  # of rounds in which drafts paid when depths were set last
        self._planned = True  # depths were set, and no drafts judged since
        self._turn = self._passed = 0  # rounds whose acceptance was learned from; some of whose drafts were passed over

    def __len__(self) -> int:
        """Sequences that it keeps something of."""
        return max(len(self.trials), len(self.acceptance))

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
        return self.trials.follows(sequence_id) and not self.worths.found.carries(sequence_id)

    @property
    def resting(self) -> bool:
        """Whether nobody is to draft at present, whatever it would cost."""
        return self.account.ledger.stopped or self._undisturbed.wanted

    @property
    def _drafts_pay(self) -> bool:
        """Whether they did when depths were set last, for rounds like those at hand."""
        return self._pays is self.account.ledger

    @property
    def welcomes(self) -> bool:
        """Whether who comes now has drafts from its first token on."""
        return self._drafts_pay and not self.resting and not self._every_step

    def sleeps(self) -> int:
        """How many rounds from now on need not be looked at if speculation has no part in them."""
        if self.account.ledger.stopped:
            return self.account.unseen
        return self.trials.asleep or self._undisturbed.missing

    def slept(self, rounds: Sequence[tuple[Shape, float]]) -> None:
        """Such rounds went by: their shapes, and their seconds."""
        if not self.account.ledger.stopped:
            self._undisturbed.add(rounds)
        self.account.slept(rounds)
        self._calm += len(rounds)
        self.trials.slept(len(rounds))

    def meet(self, newcomer: Live, room: int, *, followed: int = 0, sequences: int = 1) -> None:
        """A sequence came that says `room` tokens at most, in rounds of so many sequences.

        Its prompt is about to be read, `followed` tokens of which models would take in. Where drafts pay it has some
        from its first token on; elsewhere it is followed if there is that much to lose.
        """
        self.trials.awake()
        sequence_id, kind, _ = newcomer
        self.account.meet(sequence_id, room)
        if not self._drafts_pay and not self.account.pledge(sequence_id, followed, sequences):
            self.trials.hope(sequence_id).let_go()
        elif self.welcomes:
            sharing = min(1 + sum([depth > 0 for depth in self._depths.values()]), sequences)
            carried = self.worths.found.carries(sequence_id)
            if not carried and self.worths.model(sequence_id, kind, self._deepest, sharing) > 0.0:
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
        self.trials.wake_up()
        self.trials.settle_ahead(lane, rounds)
        if measurable is not None:
            due = measurable and self.account.base_due(plain.sequences, plain.context)
            takes_s = self.cost.undrafted(plain.sequences, plain.context) if due and self.cost.known else 0.0
            self._undisturbed.want(lane, due, takes_s, plain.sequences)
        found = NOTHING
        self._tell_price(plain, 1.0)
        if not self.resting:
            found = self.worths.price_of(live, plain)
        if self.resting or not self._deepest:
            self._rest([each.sequence_id for each in live])
            return 1
        none = [0] * len(live)
        if not any(self.trials.follows(each.sequence_id) for each in live):
            self._pays = None
            self._try(self._hand_out(live, none, pays=False), live[0], plain, rounds)
            self.trials.sleep(self.worths.trying(live[0], 1, plain))
            return 1
        worth = self.worths.best_depths(live, plain, found)
        self._tell_price(plain, self.worths.promise)
        caution = 0.0 if self._drafts_pay else _CAUTION * (plain.sequences + worth.brings)
        pays, loss = worth.gain > caution, (caution - worth.gain) / plain.sequences  # a round
        self._pays = self.account.ledger if pays else None
        might = worth.gain + sum(worth.depths) > worth.brings  # pay, if all drafts stood
        open_to_it = might and found.share < 0.5 * len(live)  # else models would hardly have a round
        ahead = self.trials.pay_ahead(lane, loss) if open_to_it and not pays else 0
        drafts = pays or ahead > 0
        without = self._hand_out(live, worth.depths if drafts else none, pays=pays)
        self._try(without, live[0], plain, rounds)
        if ahead:
            return ahead
        return 1 if self.trials.under_way else HELD if drafts else _HELD_IDLE

    def _hand_out(self, live: Sequence[Live], depths: Sequence[int], *, pays: bool) -> dict[int, Hope]:
        """Gives them their depths, at a loss where drafts do not pay. Who is without any, and the hope of each."""
        without = {}
        for each, depth in zip(live, depths, strict=True):
            hope = self.trials.hope(each.sequence_id)
            if not depth:
                without[each.sequence_id] = hope
                continue
            self._depths[each.sequence_id] = self._deepest if pays and not self._every_step else depth
            self._patience[each.sequence_id] = self.worths.patience(each)
            if pays:
                hope.worth()
            else:
                self.trials.also(each.sequence_id)
        return without

    def _tell_price(self, plain: Shape, promise: float) -> None:
        if self.cost.known:
            self.figures.price = promise * plain.sequences / self.cost.undrafted(plain.sequences, plain.context)

    def _rest(self, sequence_ids: Sequence[int]) -> None:
        """Nobody drafts; who came while nobody is followed is asked no sooner than others that were let go."""
        self._pays = None
        for each in sequence_ids:
            self._depths[each] = 0
            if self.account.ledger.stopped and each not in self.trials:
                self.trials.hope(each).let_go()

    def idle(self, lane: int) -> None:
        """No sequence of the lane decodes at present."""
        self._undisturbed.leave(lane)

    def _try(self, without: Mapping[int, Hope], like: Live, plain: Shape, rounds: int) -> None:
        """A draft for each of those `without` any that it is time to try. None for those that lookup carries."""
        takes = partial(self.worths.trying, like, plain=plain)
        tried = self.trials.pick(without, self.worths.found.carries, takes, rounds)
        for each in without:
            self._depths[each] = int(each in tried)

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
        counts = self.trials.to_verify(counts, made)
        if all(counts):
            return counts
        self._passed += 1
        for each in _in_turn([each for each, count in zip(made, counts, strict=True) if not count], self._passed):
            self.acceptance.passed_over(each.sequence_id)
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
            self.trials.stood(each.sequence_id, each.accepted, len(outcomes))
        self._turn += 1
        watched = judged[self._turn % len(judged)]
        self.warnings += self.alarms.judged(
            made[watched.sequence_id], watched.judged, watched.accepted, gap=watched.gap
        )
        taught = _in_turn(judged, self._turn)
        self.acceptance.observe([(made[each.sequence_id], each.judged, each.accepted, not each.gap) for each in taught])

    def forget(self, sequence_id: int) -> None:
        """Drops what is kept for a sequence that ended."""
        self.trials.forget(sequence_id)
        self._depths.pop(sequence_id, None)
        self._patience.pop(sequence_id, None)
        self.worths.found.forget(sequence_id)
        self.account.forget(sequence_id)
        self.acceptance.forget(sequence_id)


def _in_turn(items: Sequence[_Item], turn: int) -> Sequence[_Item]:
    """As many of them as are learned from in one round: others in the next turn."""
    stride = max(-(-len(items) // _MOST_TAUGHT), 1)
    return items[turn % stride :: stride]


def _plain(live: Sequence[Live]) -> Shape:
    context = float(sum([each.context for each in live]))
    return Shape(len(live), len(live), context, context)
