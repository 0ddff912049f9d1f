"""How many tokens to draft for each sequence: the engine's setting joined with the requests' own.

The scheduler reads `plans`; the engine reports every round and is told which drafts to verify. Rounds that speculation
takes no part in cost next to nothing here. Pure: seconds are given to it. Depths never change the text.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate
from operator import mul

from outrider.workers.depth.acceptance import DraftKind, Made, temperature_class
from outrider.workers.depth.auto import DEEPEST, AutoDepth
from outrider.workers.depth.budget import PLAIN_ROUNDS, PLAIN_SKIPPED, RATE, Budget
from outrider.workers.depth.reading import Reading, read
from outrider.workers.depth.round_time import RoundTime, Shape, size_class
from outrider.workers.depth.value import Live
from outrider.workers.types.counters import SpeculationFigures
from outrider.workers.types.draft_plan import NO_DRAFTS, DraftPlan
from outrider.workers.types.drafts import Drafts
from outrider.workers.types.round import Round, Verdict
from outrider.workers.types.round_time import RoundTiming
from outrider.workers.types.sampling_params import AUTO, LOOKUP, MAX_DRAFT_TOKENS, MTP
from outrider.workers.types.sequence import Sequence

# Rounds that plans hold for, of which the last is learned from: a quarter of the lane's sequences, but this at least
_PLAN_EVERY = 4  # planning takes 40 us for one sequence and 300 for 64
_SURPRISE = 2.0  # times its forecast, beyond which a round is learned from at once: 1 in 100 takes that long by chance
_LOOKUP_LEAD = 1.0  # tokens by which looked-up drafts must beat a model's: with 0 scout's code at batch 4 is 5 % slower


@dataclass(slots=True)
class _Lane:
    """What is known of one lane's rounds since its plans were made."""

    budget: Budget
    plain: Shape = field(default_factory=lambda: Shape.plain(1, 0.0))  # its next round without drafts
    plain_s: float = 0.0  # what that takes; 0: not known
    drafting: bool = False  # its plans have drafts
    auto: bool = False  # none of its sequences has a fixed depth
    rounds: int = 0  # since then
    surprised: bool = False  # the latest took much longer than was forecast
    version: int = -1  # of the sequences that live
    skips: int = 0  # plain rounds that are still to pass unread
    skipped_s: list[float] = field(default_factory=list)  # seconds of those that did
    draft_s: float = 0.0  # what its latest drafts took to make


class DepthPolicy:
    """Of one replica. Not thread-safe: the engine's thread calls it."""

    def __init__(
        self,
        speculation: str | int,
        experts: tuple[int, int] = (1, 1),
        models: Collection[str] = (MTP,),
        data_groups: int = 1,
        warn: Callable[[str], None] = lambda message: None,
    ) -> None:
        """`speculation` is the engine's: "off", "auto", or a fixed depth, which bounds the requests' own too.

        `experts`: how many routed experts a layer has, and how many a token activates. `models`: the drafters that pay
        for each step, the usual one first. `data_groups`: of several all run as many steps, whoever stops before.
        `warn` is told what is wrong with a drafter, each thing once.
        """
        self._default, self._models, self._warn = speculation, tuple(models), warn
        ceilings = {"off": 0, "auto": MAX_DRAFT_TOKENS}
        self._ceiling = speculation if isinstance(speculation, int) else ceilings[speculation]
        self._deepest = min(self._ceiling, DEEPEST) if models else 0
        self._experts, self._every_step = experts, data_groups > 1
        self.plans: dict[int, DraftPlan] = {}
        self._kinds: dict[int, DraftKind] = {}  # of live sequences that may draft, by the model that drafted last
        self._automatic: set[int] = set()  # of these, whose depth is left to the policy
        self._sampled: set[int] = set()  # of these, drawn at a temperature above 0
        self._version = 0  # counts sequences that came or ended
        self._auto = AutoDepth(self._deepest, RoundTime(experts), every_step=self._every_step)
        self.begin()

    @property
    def priced_model(self) -> str:
        """The model whose depths usually follow what rounds take; empty: none."""
        return next(iter(self._models), "") if self._default == "auto" else ""

    def begin(self, *, keep_times: bool = True) -> None:
        """Forgets all it has learned, but what rounds take with `keep_times`: the drafter is another from now on."""
        time = self._auto.time if keep_times else RoundTime(self._experts)
        self._auto = AutoDepth(self._deepest, time, self._auto.lookups, every_step=self._every_step)
        self._figures = SpeculationFigures(alarms=self._auto.alarms.counts)
        self._lanes: dict[int, _Lane] = {}
        self._shown: _Lane | None = None  # whose rounds were learned from last

    @property
    def figures(self) -> SpeculationFigures:
        """What status and metrics show; may be read in any thread. Rounds that pass unread are counted here."""
        if (lane := self._shown) is None:
            return self._figures
        disabled_rounds = max(lane.budget.wait - len(lane.skipped_s), 0)
        return replace(self._figures, disabled_rounds=disabled_rounds)

    @property
    def sequences(self) -> int:
        """How many it keeps something of."""
        return max(len(self.plans), len(self._kinds), len(self._auto))

    def admit(self, sequence: Sequence, together: int) -> None:
        """The sequence is about to have its first round, and may draft; `together` will share its lane's rounds."""
        params, sequence_id = sequence.request.params, sequence.sequence_id
        wanted = self._default if params.speculation is None else params.speculation
        if wanted == "off" or not self._ceiling or sequence_id in self._kinds:
            return
        lookup_only = params.drafter == LOOKUP or not self._models
        kind = DraftKind(next(iter(self._models), MTP), temperature_class(params.temperature))
        self._kinds[sequence_id] = kind
        self._version += 1
        if kind.temperature_class:
            self._sampled.add(sequence_id)
        if wanted != AUTO:
            depth = 0 if lookup_only else min(int(wanted), self._ceiling)
            self.plans[sequence_id] = DraftPlan(depth, follows=not lookup_only, looks_up=True)
            return
        self._automatic.add(sequence_id)
        if params.drafter in (None, AUTO, LOOKUP):
            self._auto.lookups.meet(sequence_id, alone=lookup_only)
        if self._auto.budget(together, self._warmest()).enabled:
            live = Live(sequence_id, kind, len(sequence.token_ids))
            self.plans[sequence_id] = (
                DraftPlan(looks_up=True) if lookup_only else self._auto.newcomer(live, drafting=self._any_drafting)
            )

    def forget(self, sequence_id: int) -> None:
        """The sequence ended."""
        if self._kinds.pop(sequence_id, None) is not None:
            self.plans.pop(sequence_id, None)
            self._automatic.discard(sequence_id)
            self._sampled.discard(sequence_id)
            self._auto.forget(sequence_id)
            self._version += 1

    def time_of(self, round: Round, round_s: float) -> RoundTiming:
        """What a round took, `round_s` of it since its scheduling, and would have taken without drafts, as modelled."""
        lane = self._lanes.get(round.lane)
        if lane is None or lane.skips or not lane.plain_s or round.sequences != lane.plain.sequences:
            return RoundTiming()
        return RoundTiming(lane.draft_s + round_s, lane.plain_s)

    def observe(
        self, round: Round, verdict: Verdict, round_s: float, draft_s: float, drafts: Mapping[int, Drafts]
    ) -> dict[int, list[int]]:
        """Learns from a round, and says which of the `drafts` made after it to verify, by sequence.

        `round_s` from its scheduling until its tokens are out, `draft_s` from then until the drafts are made.
        """
        lane = self._lanes.get(round.lane)
        if lane is not None and lane.skips and lane.version == self._version:
            if not drafts and round.token_ids.size == round.sequence_ids.size:  # no calls: it runs in every such round
                lane.skips -= 1
                lane.skipped_s.append(round_s)
                if lane.skips:
                    return {}
        elif not self._kinds:
            return {}
        lane = lane or self._lanes.setdefault(round.lane, _Lane(self._auto.budget(1, 0)))
        if lane.budget.wait or lane.skipped_s:
            self._count_skipped(lane)
        elif lane.plain_s:
            self._settle(lane, round, verdict, round_s, draft_s, drafts)
        lane.rounds += 1
        due = lane.surprised or lane.rounds >= max(_PLAN_EVERY, lane.plain.sequences // 4)
        if due or not lane.budget.enabled or size_class(round.sequences) != size_class(lane.plain.sequences):
            self._learn(lane, round, verdict, (round_s, draft_s), drafts)
        return self._worthwhile(lane, drafts) if drafts else {}

    def _count_skipped(self, lane: _Lane) -> None:
        """What skipped rounds earned, and what they took."""
        skipped, lane.skipped_s, lane.skips, lane.rounds = lane.skipped_s, [], 0, lane.plain.sequences + _PLAN_EVERY
        if lane.budget.wait:
            lane.budget.skip(max(len(skipped), 1))
        lane.budget.measured()
        if len(skipped) > 2 * PLAIN_SKIPPED:
            self._auto.time.observe_plain(lane.plain, skipped[PLAIN_SKIPPED:])

    def _settle(
        self, lane: _Lane, round: Round, verdict: Verdict, round_s: float, draft_s: float, drafts: Mapping[int, Drafts]
    ) -> None:
        """Books what a round's drafts brought, and what they should cost: the machine's noise is no loss of theirs.

        `drafts`: the sequences that have some after it.
        """
        if not lane.auto:  # what the drafts of each sequence bring and take cannot be told
            lane.budget.pay(0.0, verified=any(each in self._automatic for each in drafts))
            return
        pending, rows, sequences = len(drafts) > 0, len(round.token_ids), len(round.sequence_ids)
        plain_s = lane.plain_s
        if sequences != lane.plain.sequences:
            context = lane.plain.context * sequences / lane.plain.sequences
            plain_s = self._auto.time.plain_s(Shape.plain(sequences, context, min(lane.plain.sampled, sequences)))
        if rows == int(round.sample_counts.sum()):
            lane.draft_s = draft_s
            forecast_s = self._auto.time.forecast_s(self._shape(lane, round, verdict, drafts))
            lane.surprised = round_s + draft_s > _SURPRISE * forecast_s
            tokens = len(verdict.token_ids) / sequences
            lane.budget.settle(tokens, forecast_s / plain_s, verified=rows > sequences, pending=pending)
        else:  # prompts are read, and the drafter follows them
            lane.budget.pay(max(draft_s - lane.draft_s, 0.0) / plain_s, verified=pending, pending=pending)

    def _shape(self, lane: _Lane, round: Round, verdict: Verdict, drafts: Mapping[int, Drafts]) -> Shape:
        """The decoding round's, its contexts as long as when its lane was planned."""
        rows, sequences = len(round.token_ids), len(round.sequence_ids)
        steps = [len(own) for own in drafts.values() if own.drafter != LOOKUP]
        share = lane.plain.sampled / lane.plain.sequences
        context = lane.plain.context * sequences / lane.plain.sequences
        return Shape(
            sequences, rows, context, context * rows / sequences, int(share * rows),
            max(steps, default=0), sum(steps), int(share * sum(steps)),
            len(verdict.token_ids) if len(round.upkeep) else 0, self._model_of(drafts),
        )  # fmt: skip

    def _learn(
        self, lane: _Lane, round: Round, verdict: Verdict, took: tuple[float, float], drafts: Mapping[int, Drafts]
    ) -> None:
        """Takes in what became of a round's drafts and what it took, and plans the lane's next rounds."""
        seen = read(round, verdict, drafts, self._sampled, self._model_of(drafts))
        for warning in self._auto.learn(seen.outcomes):
            self._warn(warning)
        whole = len(seen.outcomes) == seen.shape.sequences  # no prompt chunks, whose time is not comparable
        if whole and (self._automatic or self._default == AUTO):
            self._auto.time.observe(seen.shape, *took)
        lane.rounds, lane.surprised, lane.version = 0, False, self._version
        if seen.going:
            self._plan(lane, seen)
        self._show(lane, seen)

    def _plan(self, lane: _Lane, seen: Reading) -> None:
        going = {each: tokens for each, tokens in seen.going.items() if each in self._automatic}
        sampled = sum([each in self._sampled for each in seen.going])
        lane.plain = Shape.plain(len(seen.going), float(sum(seen.going.values())), sampled)
        lane.auto = not any(each in self._kinds for each in seen.going.keys() - going.keys())
        warmest = max([self._kinds[each].temperature_class for each in going], default=0)
        lane.budget = self._auto.budget(len(seen.going), warmest)
        lane.plain_s = self._auto.time.plain_s(lane.plain) if self._auto.time.known else 0.0
        if not going:
            return
        live = [Live(each, self._kinds[each], tokens) for each, tokens in going.items()]
        plans = self._auto.plan(live, lane.plain, lane.budget, drafting=lane.drafting)
        self.plans.update(zip(going, plans, strict=True))
        lane.drafting = any(plan.depth for plan in plans)
        lane.skips = lane.budget.wait if not lane.budget.enabled else PLAIN_ROUNDS * lane.budget.plain_due
        if not lane.auto:
            lane.skips = 0

    def _show(self, lane: _Lane, seen: Reading) -> None:
        figures, budget, self._shown = self._figures, lane.budget, lane
        if self._auto.value.price:
            figures.price, figures.speedup, figures.budget = self._auto.value.price, budget.speedup, budget.level
        figures.disabled_reason = budget.reason
        depth = (seen.shape.rows - seen.shape.sequences) / seen.shape.sequences
        figures.draft_depth += _PLAN_EVERY * RATE * (depth - figures.draft_depth)

    def _warmest(self) -> int:
        return max([self._kinds[each].temperature_class for each in self._automatic], default=0)

    @property
    def _any_drafting(self) -> bool:
        return any(lane.drafting for lane in self._lanes.values())

    def _model_of(self, drafts: Mapping[int, Drafts]) -> str:
        """Which model's steps these took; of several one that is not the usual one, and takes longer."""
        usual = next(iter(self._models), MTP)
        return min({own.drafter for own in drafts.values() if own} - {LOOKUP, usual}, default=usual)

    def _worthwhile(self, lane: _Lane, drafts: Mapping[int, Drafts]) -> dict[int, list[int]]:
        """Of these drafts those to verify: with a fixed depth all, else those that are worth their time."""
        tokens = {sequence_id: own.token_ids for sequence_id, own in drafts.items()}
        made, fixed = list[Made](), 0
        for sequence_id, own in drafts.items():
            kind = self._kinds.get(sequence_id)
            if kind is None or not own.token_ids:
                continue
            kind = kind.by(own.drafter)
            if sequence_id in self._automatic:
                made.append(Made(sequence_id, kind, own.confidences))
            else:
                fixed += len(own.token_ids)
                self._auto.remember(Made(sequence_id, kind, own.confidences))
            if own.drafter != LOOKUP:
                self._kinds[sequence_id] = kind
        if made:
            base = lane.plain._replace(rows=lane.plain.rows + fixed) if fixed else lane.plain
            for each, count in zip(made, self._auto.verify(made, base, lane.budget), strict=True):
                tokens[each.sequence_id] = tokens[each.sequence_id][:count]
        return tokens

    def failed(self, drafter: str, reason: str) -> bool:
        """A drafter raised an error: counted. Whether that is news."""
        return bool(self._auto.alarms.failed(drafter, reason))

    # What the choice among drafters asks (drafting/choosing_drafter.py).

    @property
    def copied(self) -> bool:
        """Whether text is looked up often."""
        return self._auto.lookups.common

    def looks_up(self, sequence_id: int) -> bool:
        """Whether the sequence's text should be searched for drafts."""
        return self.plans.get(sequence_id, NO_DRAFTS).looks_up

    def looked_up(self, proposal: Drafts) -> tuple[int, float]:
        """How many drafts of a proposal are worth verifying, and the tokens that they bring above their price."""
        return self._auto.value.of_lookup(accumulate(proposal.confidences, mul))

    def best_model(self, sequence_id: int, steps: int, sharing: int) -> tuple[str | None, float]:
        """The model whose `steps` drafts are worth most, and what looked-up ones must be worth to be preferred.

        None where there is no model, or no step. `sharing`: how many sequences draft together, and share the steps.
        """
        kind = self._kinds.get(sequence_id)
        if not self._models or kind is None:
            return next(iter(self._models), None) if steps else None, 0.0
        ahead = 0.0 if self._auto.lookups.carries(sequence_id) else _LOOKUP_LEAD
        if not steps:
            return None, ahead
        worth = {name: self._auto.value.of_model(sequence_id, kind.by(name), steps, sharing) for name in self._models}
        best = max(worth, key=worth.__getitem__)
        return best, worth[best] + ahead

    def chose(self, sequence_id: int, kept: Drafts) -> None:
        """What was looked up for the sequence is to be verified so far; nothing: a model drafts."""
        rows = self.looked_up(kept)[0] if kept else 0
        self._auto.lookups.add(sequence_id, sum(accumulate(kept.confidences[:rows], mul)) if rows else 0.0)
