"""How many tokens to draft for a sequence in its next round: the engine's setting joined with the requests' own.

Pure: seconds are given to it. Depths never change the text, so any rule would do; which one is fast is auto_depth.py's.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from itertools import accumulate
from operator import mul
from typing import NamedTuple

from outrider.workers.engine.outcome import RoundTime
from outrider.workers.engine.request import SpeculationFigures
from outrider.workers.engine.round import RUNNING, Round, Verdict
from outrider.workers.engine.sequence import Sequence
from outrider.workers.sampling_params import AUTO, LOOKUP, MAX_DRAFT_TOKENS, MTP
from outrider.workers.speculation.acceptance import Kind, Made, Pending
from outrider.workers.speculation.auto_depth import DEEPEST, AutoDepth
from outrider.workers.speculation.cost import HELD, RoundCost
from outrider.workers.speculation.drafter import Draft
from outrider.workers.speculation.known_times import Shape
from outrider.workers.speculation.lane_plan import LanePlan
from outrider.workers.speculation.naps import Naps
from outrider.workers.speculation.patience import ENDLESS, Patience
from outrider.workers.speculation.seen import Seen
from outrider.workers.speculation.worths import Live

# Rounds heard of together, the latest: whose drafts' outcomes are learned from; whose time is. Of the others the sums.
_MOST_TAUGHT, _MOST_TIMED = 6, 4


class _Heard(NamedTuple):
    """A round that was run, and not learned from yet."""

    round: Round
    verdict: Verdict
    round_s: float
    draft_s: float
    decided_s: float
    drafts: Mapping[int, list[Draft]] | None
    made: dict[int, Pending]  # the drafts that it verified


class DepthPolicy:
    """The engine's speculation setting joined with the requests' own. Not thread-safe."""

    def __init__(
        self,
        speculation: str | int,
        experts: tuple[int, int] = (1, 1),
        models: Collection[str] = (MTP,),
        data_groups: int = 1,
    ) -> None:
        """`speculation` is the engine's: "off", "auto", or a fixed depth, which bounds the requests' own too.

        `experts`: how many routed ones a layer has, and how many of them a token wakes. `models`: the drafters that pay
        for each step; the first is believed in until another has shown more. `data_groups`: of several all go as many
        steps, whoever stops before.
        """
        self._default = speculation
        self._ceiling = (
            speculation if isinstance(speculation, int) else {"off": 0, "auto": MAX_DRAFT_TOKENS}[speculation]
        )
        self._models = tuple(models)
        self._deepest = min(self._ceiling, DEEPEST) if models else 0
        self._experts, self._every_step = experts, data_groups > 1
        self.reset()

    @property
    def priced_model(self) -> str:
        """The model whose depths usually follow what rounds take; empty: none."""
        return next(iter(self._models), "") if self._default == "auto" else ""

    def reset(self) -> None:
        """Forgets all it has learned: the first rounds were not like others."""
        self._begin(RoundCost(self._experts))

    def begin(self) -> None:
        """Forgets all it has learned but what rounds take: the warm-up's texts were not like others."""
        self._auto.cost.forget_bases()
        self._begin(self._auto.cost)

    def _begin(self, cost: RoundCost) -> None:
        self._auto = AutoDepth(self._deepest, cost, every_step=self._every_step)
        self._kinds: dict[int, Kind] = {}  # of the sequences whose depth is "auto"
        self._heats = [0, 0, 0]  # how many of these there are by heat
        self._together = 0  # sequences that decode in the lane planned last
        self.expected = 0  # sequences that share a lane's rounds once those that wait have begun
        self._lanes: dict[int, LanePlan] = {}
        self._lane = 0  # the one observed last
        self._heard: list[_Heard] = []
        self._turned = False  # lookup has begun or ceased to carry a sequence: depths want to be set anew
        self._naps: dict[int, Naps] = {}  # by lane

    @property
    def figures(self) -> SpeculationFigures:
        """What can be told of it: price, gain, ledger, alarms. Live."""
        return self._auto.figures

    @property
    def sequences(self) -> int:
        """How many sequences it keeps something of."""
        return max(len(self._auto), len(self._kinds))

    def depth(self, sequence: Sequence) -> int:
        """Drafts to make for the sequence after the round that is being composed."""
        wanted = self._wanted(sequence)
        if wanted == "off" or not self._ceiling:
            return 0
        if wanted != "auto":
            return min(int(wanted), self._ceiling)
        if sequence.request.params.drafter == LOOKUP:
            return 0
        self._kind(sequence)
        return self._auto.depth(sequence.sequence_id)

    def patience(self, sequence: Sequence) -> Patience:
        """When the drafting for the sequence ends before its depth: a fixed depth's never."""
        return self._auto.patience(sequence.sequence_id) if self._wanted(sequence) == "auto" else ENDLESS

    def follows(self, sequence: Sequence) -> bool:
        """Whether models should take in the sequence's next rows. With a fixed depth always."""
        if self._wanted(sequence) != "auto":
            return True
        self._kind(sequence)
        return sequence.request.params.drafter != LOOKUP and self._auto.follows(sequence.sequence_id)

    def _wanted(self, sequence: Sequence) -> str | int:
        requested = sequence.request.params.speculation
        return self._default if requested is None else requested

    def _kind(self, sequence: Sequence) -> Kind:
        """Of a sequence whose depth is "auto", which is known from then on."""
        kind = self._kinds.get(sequence.sequence_id)
        if kind is None:
            self._wake()  # what went by is those sequences' that shared it
            if self._heard:
                self._learn()
            model = next(iter(self._models), MTP)
            kind = self._kinds[sequence.sequence_id] = Kind.of(model, sequence.request.params.temperature)
            self._heats[kind.heat] += 1
            self._auto.meet()
            if sequence.request.params.drafter in (None, AUTO, LOOKUP):
                self._auto.worths.found.meet(sequence.sequence_id)
            self._auto.account.turn_to(max(self._together + 1, self.expected), self._heat)
        return kind

    @property
    def _heat(self) -> int:
        """Of the hottest that live: where texts of several heats share an engine, it is held to that one's floor."""
        _, drawn, hot = self._heats
        return 2 if hot else 1 if drawn else 0

    def time_of(self, round: Round, round_s: float) -> RoundTime:
        """What a round took, `round_s` of it since its scheduling, and would have taken without drafts, as modelled.

        Unknown while no round's time is, while speculation is stopped, and of rounds with prompt chunks.
        """
        lane = self._lanes.get(round.lane)
        return RoundTime() if lane is None or self.figures.stopped else lane.time_of(round, round_s)

    def observe(
        self,
        round: Round,
        verdict: Verdict,
        round_s: float,
        draft_s: float,
        drafts: Mapping[int, list[Draft]] | None = None,
        decided_s: float = 0.0,
    ) -> None:
        """Learns from a round: `round_s` from its scheduling until its tokens are out, `draft_s` from then on.

        `drafts`: those made in that time; None: as many as the round asks for. `decided_s`: of `round_s`, by this
        policy on the round before. Where speculation pays and nothing changes a few rounds are learned from together:
        that slows what is measured.
        """
        if not self._ceiling:
            return
        lane = self._lanes.get(round.lane) or self._lanes.setdefault(round.lane, LanePlan())
        self._lane, lane.draft_s = round.lane, draft_s
        self._auto.account.turn_to(round.sequences, self._heat)
        if not drafts and self._slept(round, verdict, round_s):
            return
        self._wake()
        made = self._auto.take(round.sequence_ids.tolist())
        self._heard.append(_Heard(round, verdict, round_s, draft_s, decided_s, drafts, made))
        if self._turned:
            lane.holds = 1
        if len(self._heard) >= lane.holds or not lane.goes_on(round, verdict, round_s + draft_s):
            self._learn()

    def _learn(self) -> None:
        """Takes in the rounds that were heard of, and sets the depths of their lanes' sequences."""
        heard, self._heard, self._turned = self._heard, [], False
        rounds = Counter([each.round.lane for each in heard])
        last = {each.round.lane: n for n, each in enumerate(heard)}
        latest = {}
        self._auto.cost.decided([each.decided_s for each in heard])
        for n, each in enumerate(heard, -len(heard)):
            if n >= -_MOST_TIMED or n + len(heard) == last[each.round.lane]:
                latest[each.round.lane] = self._take_in(each)
            else:
                self._count(each, taught=n >= -_MOST_TAUGHT)
        for lane, seen in latest.items():
            self._plan(lane, seen.going, seen.whole, rounds[lane])

    def _count(self, heard: _Heard, *, taught: bool) -> None:
        """A round of which there is nothing to know but what it brought and took; if `taught`, its drafts' fate too."""
        round, lane = heard.round, self._lanes[heard.round.lane]
        drafts = zip(round.sequence_ids.tolist(), round.sample_counts.tolist(), strict=True)
        if lane.undrafted_s and all(count == 1 or sequence_id in self._kinds for sequence_id, count in drafts):
            self._auto.account.turn_to(round.sequences, self._heat)
            worth = len(heard.verdict.token_ids) / round.sequences
            self._auto.account.count(round.sequences, worth, lane.rounds_of(heard.round_s + heard.draft_s))
        if taught and heard.made:
            seen = Seen.of(round, heard.verdict, heard.drafts, self._model_of(heard.drafts))
            self._auto.learn_acceptance(seen.outcomes, heard.made)

    def _take_in(self, heard: _Heard) -> Seen:
        round, verdict = heard.round, heard.verdict
        self._auto.account.turn_to(round.sequences, self._heat)
        seen = Seen.of(round, verdict, heard.drafts, self._model_of(heard.drafts))
        kinds = self._kinds
        if seen.whole:
            own = all(each.sequence_id in kinds or not each.verified for each in seen.outcomes)
            tokens, times = len(verdict.token_ids), (heard.round_s, heard.draft_s, heard.decided_s)
            self._auto.observe(seen.outcomes, seen.shape, tokens, *times, own=own, made=heard.made)
        else:
            self._auto.learn_acceptance(seen.outcomes, heard.made)
        self._forget((*round.ends.tolist(), *seen.finished))
        return seen

    def _model_of(self, drafts: Mapping[int, list[Draft]] | None) -> str:
        """Which model took steps for these; of several one that is not the usual one, and takes longer."""
        usual = next(iter(self._models), MTP)
        if drafts is None or len(self._models) < 2:
            return usual
        return min({own[0].drafter for own in drafts.values() if own} - {LOOKUP, usual}, default=usual)

    def _slept(self, round: Round, verdict: Verdict, round_s: float) -> bool:
        """Whether speculation had no part in a round, which is not worth looking at."""
        if len(round.token_ids) != round.sequences or (self._kinds and not self._naps_on(round, round_s)):
            return False
        ended = round.ends.tolist()
        if any(verdict.finish.tolist()):
            finished = round.sequence_ids[verdict.finish != RUNNING].tolist()
            ended += finished
            self._together = round.sequences - len(finished)
        if ended:
            self._wake()
            if self._heard:
                self._learn()
            self._forget(ended)
        return True

    def _naps_on(self, round: Round, round_s: float) -> bool:
        """Whether a round without drafts need not be looked at."""
        naps = self._naps.setdefault(round.lane, Naps())
        if naps.add(round.sequences, round_s):
            return True
        self._wake()
        context = float(sum(round.starts.tolist()) + round.sequences)
        naps.begin(self._auto.sleeps(), Shape(round.sequences, round.sequences, context, context))
        return naps.add(round.sequences, round_s)

    def _wake(self) -> None:
        """Counts the rounds that went by."""
        for naps in self._naps.values():
            for shape, round_s in naps.end():
                self._auto.slept(shape, round_s)

    def forget(self, sequence_id: int) -> None:
        """Drops what is kept for a sequence that ended, or will never begin."""
        self._auto.forget(sequence_id)
        if (kind := self._kinds.pop(sequence_id, None)) is not None:
            self._heats[kind.heat] -= 1

    def _forget(self, ended: Iterable[int]) -> None:
        for sequence_id in ended:
            self.forget(sequence_id)

    @property
    def resting(self) -> bool:
        """Whether nobody should draft whose depth is not fixed, or there is no such sequence."""
        return not self._kinds or self._auto.resting

    @property
    def copied(self) -> bool:
        """Whether a good part of the texts of late was looked up."""
        return self._auto.worths.found.common

    def looks_up(self, sequence_id: int) -> bool:
        """Whether what a sequence said should be looked up for drafts."""
        return sequence_id not in self._kinds or not self._auto.resting

    def looked_up(self, proposal: list[Draft]) -> tuple[int, float]:
        """How many of a proposal's drafts are worth verifying, and what they bring above their price, in tokens."""
        return self._auto.worths.looked_up([draft.confidence for draft in proposal])

    def best_model(self, sequence_id: int, steps: int, sharing: int) -> tuple[str | None, float]:
        """The model whose `steps` drafts are worth most, and how much: None where there is no model, or no step.

        `sharing`: how many sequences draft together, and share the price of the steps.
        """
        kind = self._kinds.get(sequence_id)
        if not steps or not self._models or kind is None:
            return next(iter(self._models), None) if steps else None, 0.0
        worths = {name: self._auto.worths.model(sequence_id, kind.by(name), steps, sharing) for name in self._models}
        best = max(worths, key=worths.__getitem__)
        return best, worths[best]

    def chose(self, sequence_id: int, kept: list[Draft]) -> None:
        """What was looked up for the sequence is to be verified so far; nothing: a model drafts, or nobody."""
        rows, _ = self.looked_up(kept)
        tokens = sum(accumulate([draft.confidence for draft in kept[:rows]], mul))
        self._turned |= self._auto.worths.found.add(sequence_id, rows, tokens)

    def _plan(self, lane: int, going: Mapping[int, int], whole: bool, rounds: int) -> None:
        """Sets the depths of a lane's sequences, by id with their tokens, after so many rounds."""
        self._together = len(going)
        context, kinds, plan = float(sum(going.values())), self._kinds, self._lanes[lane]
        known = len(going) > 0 and self._auto.cost.known
        undrafted_s = self._auto.cost.undrafted(len(going), context) if known else 0.0
        if going:
            self._auto.account.turn_to(len(going), self._heat)
        plan.renew(Shape(len(going), len(going), context, context), undrafted_s, self._auto.account.ledger.level)
        live = [Live(i, kinds[i], tokens) for i, tokens in going.items() if i in kinds]
        if not live:
            plan.hold(HELD)
            self._auto.idle(lane)
            return
        measurable = None if not whole else len(live) == len(going)
        plan.hold(self._auto.plan(live, plan.plain, lane=lane, measurable=measurable, rounds=rounds))

    def failed(self, reason: str) -> bool:
        """The drafter raised an error: counted. Whether that is news."""
        return bool(self._auto.alarms.failed(next(iter(self._models), LOOKUP), reason))

    def take_warnings(self) -> list[str]:
        """What was found to be wrong since the last call, with its likely cause; each thing once."""
        if not self._auto.warnings:
            return []
        taken, self._auto.warnings = self._auto.warnings, []
        return taken

    def worthwhile(self, drafts: Mapping[int, list[Draft]]) -> dict[int, list[int]]:
        """Of drafts by sequence id those to verify, after their round was observed.

        With a fixed depth all; else those that are worth their time, whoever made them.
        """
        made: list[Made] = []
        fixed, kinds = 0, self._kinds
        tokens = {i: [draft.token_id for draft in own] for i, own in drafts.items()}
        for sequence_id, own in drafts.items():
            kind = kinds.get(sequence_id)
            if kind is None or not own:
                fixed += len(own)
                continue
            if own[0].drafter != kind.drafter:
                kind = kind.by(own[0].drafter)
                if kind.drafter != LOOKUP:
                    kinds[sequence_id] = kind
                    self._turned = True
            made.append(Made(sequence_id, kind, [draft.confidence for draft in own]))
        if made:
            for each, count in zip(made, self._kept(made, fixed), strict=True):
                del tokens[each.sequence_id][count:]
        return tokens

    def _kept(self, made: list[Made], fixed: int) -> list[int]:
        """How many of the drafts to verify, of each, beside `fixed` ones that are verified whatever they cost."""
        plain = self._lanes[self._lane].plain
        self._auto.account.turn_to(plain.sequences, self._heat)
        return self._auto.keep(made, plain._replace(rows=plain.rows + fixed) if fixed else plain)
