"""The depth policy: how many tokens to draft for each sequence, from the engine's setting and the requests' own.

The scheduler reads `plans`. The engine reports every round to `observe`, which returns the drafts to verify. Rounds
without speculation take almost no time here. Pure: callers pass in measured seconds. Depths never change the text.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate
from operator import mul

from outrider.workers.depth.acceptance import DraftKind, MadeDrafts, temperature_class
from outrider.workers.depth.auto import DEEPEST, AutoDepth
from outrider.workers.depth.budget import PLAIN_ROUNDS, PLAIN_SKIPPED, RATE, Budget
from outrider.workers.depth.round_summary import RoundSummary, summarize
from outrider.workers.depth.round_time import RoundTime, Shape, size_class
from outrider.workers.depth.value import Live
from outrider.workers.types.counters import SpeculationFigures
from outrider.workers.types.requests.sampling_params import AUTO, LOOKUP, MAX_DRAFT_TOKENS, MTP
from outrider.workers.types.rounds.draft_plan import NO_DRAFTS, DraftPlan
from outrider.workers.types.rounds.drafts import Drafts
from outrider.workers.types.rounds.round import Round, Verdict
from outrider.workers.types.rounds.round_time import RoundTiming
from outrider.workers.types.rounds.sequence import Sequence

# Least rounds for which plans are valid (or a quarter of the lane's sequences); the last of them is learned from
_PLAN_EVERY = 4  # planning takes 40 us for one sequence and 300 for 64
_OUTLIER = 2.0  # a round that takes so many times its forecast is learned from at once: 1 in 100 does by chance
_LOOKUP_LEAD = 1.0  # tokens by which looked-up drafts must beat a model's: 0 makes scout's code at batch 4 5 % slower


@dataclass(slots=True)
class _Lane:
    """The state of one lane since its plans were made."""

    budget: Budget
    plain: Shape = field(default_factory=lambda: Shape.plain(1, 0.0))  # its next round without drafts
    plain_s: float = 0.0  # time of that round; 0: unknown
    drafting: bool = False  # its plans have drafts
    auto: bool = False  # none of its sequences has a fixed depth
    rounds: int = 0  # since the plans were made
    outlier: bool = False  # the latest round took much longer than forecast
    version: int = -1  # of the set of live sequences
    skips: int = 0  # plain rounds left that only have their time recorded
    skipped_s: list[float] = field(default_factory=list)  # seconds of those that ran
    draft_s: float = 0.0  # time of making the latest drafts


class DepthPolicy:
    """The depth policy of one replica. Not thread-safe: only for the engine's thread."""

    def __init__(
        self,
        speculation: str | int,
        experts: tuple[int, int] = (1, 1),
        models: Collection[str] = (MTP,),
        data_groups: int = 1,
        warn: Callable[[str], None] = lambda message: None,
    ) -> None:
        """`speculation` is the engine's: "off", "auto", or a fixed depth, which also limits requests' own.

        `experts`: routed experts per layer, and active ones per token. `models`: the drafters whose steps take time,
        the default first. `data_groups`: with several, early stopping saves no steps. `warn` is called once per kind
        of alarm.
        """
        self._default, self._models, self._warn = speculation, tuple(models), warn
        ceilings = {"off": 0, "auto": MAX_DRAFT_TOKENS}
        self._ceiling = speculation if isinstance(speculation, int) else ceilings[speculation]
        self._deepest = min(self._ceiling, DEEPEST) if models else 0
        self._experts, self._every_step = experts, data_groups > 1
        self.plans: dict[int, DraftPlan] = {}
        self._kinds: dict[int, DraftKind] = {}  # of live sequences that may draft; the model that drafted last
        self._automatic: set[int] = set()  # those with automatic depth
        self._sampled: set[int] = set()  # those with a temperature above 0
        self._version = 0  # changes when a sequence is added or ends
        self._auto = AutoDepth(self._deepest, RoundTime(experts), every_step=self._every_step)
        self.begin()

    @property
    def priced_model(self) -> str:
        """The default model, if depths are automatic by default; else empty."""
        return next(iter(self._models), "") if self._default == "auto" else ""

    def begin(self, *, keep_times: bool = True) -> None:
        """Resets everything learned, except round times with `keep_times`. Called when the drafter changes."""
        time = self._auto.time if keep_times else RoundTime(self._experts)
        self._auto = AutoDepth(self._deepest, time, self._auto.lookups, every_step=self._every_step)
        self._figures = SpeculationFigures(alarms=self._auto.alarms.counts)
        self._lanes: dict[int, _Lane] = {}
        self._shown: _Lane | None = None  # the lane that was learned from last

    @property
    def figures(self) -> SpeculationFigures:
        """What status and metrics show, skipped rounds included. Thread-safe."""
        if (lane := self._shown) is None:
            return self._figures
        disabled_rounds = max(lane.budget.wait - len(lane.skipped_s), 0)
        return replace(self._figures, disabled_rounds=disabled_rounds)

    @property
    def sequences(self) -> int:
        """Number of sequences with any state here."""
        return max(len(self.plans), len(self._kinds), len(self._auto))

    def admit(self, sequence: Sequence, together: int) -> None:
        """Plans a sequence that may draft before its first round. `together`: sequences in its lane's rounds."""
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
            self._auto.lookups.add_sequence(sequence_id, lookup_only=lookup_only)
        if self._auto.budget(together, self._highest_temperature_class()).enabled:
            live = Live(sequence_id, kind, len(sequence.token_ids))
            self.plans[sequence_id] = (
                DraftPlan(looks_up=True) if lookup_only else self._auto.plan_new(live, drafting=self._any_drafting)
            )

    def forget(self, sequence_id: int) -> None:
        """Removes an ended sequence."""
        if self._kinds.pop(sequence_id, None) is not None:
            self.plans.pop(sequence_id, None)
            self._automatic.discard(sequence_id)
            self._sampled.discard(sequence_id)
            self._auto.forget(sequence_id)
            self._version += 1

    def time_of(self, round: Round, round_s: float) -> RoundTiming:
        """The round's time (drafting included), and its modelled time without drafts. `round_s`: since scheduling."""
        lane = self._lanes.get(round.lane)
        if lane is None or lane.skips or not lane.plain_s or round.sequences != lane.plain.sequences:
            return RoundTiming()
        return RoundTiming(lane.draft_s + round_s, lane.plain_s)

    def observe(
        self, round: Round, verdict: Verdict, round_s: float, draft_s: float, drafts: Mapping[int, Drafts]
    ) -> dict[int, list[int]]:
        """Learns from a round. Returns which of the `drafts` made after it to verify, by sequence id.

        `round_s`: from scheduling until its tokens were delivered; `draft_s`: from then until the drafts were made.
        """
        lane = self._lanes.get(round.lane)
        if lane is not None and lane.skips and lane.version == self._version:
            if not drafts and round.token_ids.size == round.sequence_ids.size:  # no calls: it runs in every round
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
        due = lane.outlier or lane.rounds >= max(_PLAN_EVERY, lane.plain.sequences // 4)
        if due or not lane.budget.enabled or size_class(round.sequences) != size_class(lane.plain.sequences):
            self._learn(lane, round, verdict, (round_s, draft_s), drafts)
        return self._worthwhile(lane, drafts) if drafts else {}

    def _count_skipped(self, lane: _Lane) -> None:
        """Adds skipped rounds to the budget and to the measurements of plain rounds."""
        skipped, lane.skipped_s, lane.skips, lane.rounds = lane.skipped_s, [], 0, lane.plain.sequences + _PLAN_EVERY
        if lane.budget.wait:
            lane.budget.skip(max(len(skipped), 1))
        lane.budget.measured()
        if len(skipped) > 2 * PLAIN_SKIPPED:
            self._auto.time.observe_plain(lane.plain, skipped[PLAIN_SKIPPED:])

    def _settle(
        self, lane: _Lane, round: Round, verdict: Verdict, round_s: float, draft_s: float, drafts: Mapping[int, Drafts]
    ) -> None:
        """Updates the budget with the round's tokens and estimated time; measured time would add the machine's noise.

        `drafts`: those made after the round.
        """
        if not lane.auto:  # with fixed depths in the round, the gain of the other drafts is unknown
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
            lane.outlier = round_s + draft_s > _OUTLIER * forecast_s
            tokens = len(verdict.token_ids) / sequences
            lane.budget.settle(tokens, forecast_s / plain_s, verified=rows > sequences, pending=pending)
        else:  # the round has prompt chunks, which the drafter follows
            lane.budget.pay(max(draft_s - lane.draft_s, 0.0) / plain_s, verified=pending, pending=pending)

    def _shape(self, lane: _Lane, round: Round, verdict: Verdict, drafts: Mapping[int, Drafts]) -> Shape:
        """The shape of a decoding round, with the context lengths of its lane's last planning."""
        rows, sequences = len(round.token_ids), len(round.sequence_ids)
        steps = [len(own) for own in drafts.values() if own.drafter != LOOKUP]
        share = lane.plain.sampled / lane.plain.sequences
        context = lane.plain.context * sequences / lane.plain.sequences
        return Shape(
            sequences, rows, context, context * rows / sequences, int(share * rows),
            max(steps, default=0), sum(steps), int(share * sum(steps)),
            len(verdict.token_ids) if len(round.follows) else 0, self._model_of(drafts),
        )  # fmt: skip

    def _learn(
        self, lane: _Lane, round: Round, verdict: Verdict, took: tuple[float, float], drafts: Mapping[int, Drafts]
    ) -> None:
        """Learns from the round's drafts and times, and plans the lane's next rounds."""
        summary = summarize(round, verdict, drafts, self._sampled, self._model_of(drafts))
        for warning in self._auto.learn(summary.outcomes):
            self._warn(warning)
        whole = len(summary.outcomes) == summary.shape.sequences  # no prompt chunks, whose time is not comparable
        if whole and (self._automatic or self._default == AUTO):
            self._auto.time.observe(summary.shape, *took)
        lane.rounds, lane.outlier, lane.version = 0, False, self._version
        if summary.continuing:
            self._plan(lane, summary)
        self._show(lane, summary)

    def _plan(self, lane: _Lane, summary: RoundSummary) -> None:
        automatic = {each: tokens for each, tokens in summary.continuing.items() if each in self._automatic}
        sampled = sum([each in self._sampled for each in summary.continuing])
        lane.plain = Shape.plain(len(summary.continuing), float(sum(summary.continuing.values())), sampled)
        lane.auto = not any(each in self._kinds for each in summary.continuing.keys() - automatic.keys())
        highest = max([self._kinds[each].temperature_class for each in automatic], default=0)
        lane.budget = self._auto.budget(len(summary.continuing), highest)
        lane.plain_s = self._auto.time.plain_s(lane.plain) if self._auto.time.known else 0.0
        if not automatic:
            return
        live = [Live(each, self._kinds[each], tokens) for each, tokens in automatic.items()]
        plans = self._auto.plan(live, lane.plain, lane.budget, drafting=lane.drafting)
        self.plans.update(zip(automatic, plans, strict=True))
        lane.drafting = any(plan.depth for plan in plans)
        lane.skips = lane.budget.wait if not lane.budget.enabled else PLAIN_ROUNDS * lane.budget.plain_due
        if not lane.auto:
            lane.skips = 0

    def _show(self, lane: _Lane, summary: RoundSummary) -> None:
        figures, budget, self._shown = self._figures, lane.budget, lane
        if self._auto.value.price:
            figures.price, figures.speedup, figures.budget = self._auto.value.price, budget.speedup, budget.level
        figures.disabled_reason = budget.reason
        depth = (summary.shape.rows - summary.shape.sequences) / summary.shape.sequences
        figures.draft_depth += _PLAN_EVERY * RATE * (depth - figures.draft_depth)

    def _highest_temperature_class(self) -> int:
        return max([self._kinds[each].temperature_class for each in self._automatic], default=0)

    @property
    def _any_drafting(self) -> bool:
        return any(lane.drafting for lane in self._lanes.values())

    def _model_of(self, drafts: Mapping[int, Drafts]) -> str:
        """The model that made these drafts. If several did, one other than the default, since it takes longer."""
        usual = next(iter(self._models), MTP)
        return min({own.drafter for own in drafts.values() if own} - {LOOKUP, usual}, default=usual)

    def _worthwhile(self, lane: _Lane, drafts: Mapping[int, Drafts]) -> dict[int, list[int]]:
        """The drafts to verify: all of sequences with a fixed depth, else those that are worth their time."""
        tokens = {sequence_id: own.token_ids for sequence_id, own in drafts.items()}
        made, fixed = list[MadeDrafts](), 0
        for sequence_id, own in drafts.items():
            kind = self._kinds.get(sequence_id)
            if kind is None or not own.token_ids:
                continue
            kind = kind.by(own.drafter)
            if sequence_id in self._automatic:
                made.append(MadeDrafts(sequence_id, kind, own.confidences))
            else:
                fixed += len(own.token_ids)
                self._auto.remember(MadeDrafts(sequence_id, kind, own.confidences))
            if own.drafter != LOOKUP:
                self._kinds[sequence_id] = kind
        if made:
            base = lane.plain._replace(rows=lane.plain.rows + fixed) if fixed else lane.plain
            for each, count in zip(made, self._auto.verify(made, base, lane.budget), strict=True):
                tokens[each.sequence_id] = tokens[each.sequence_id][:count]
        return tokens

    def failed(self, drafter: str, reason: str) -> bool:
        """Counts an error raised by a drafter. Returns whether it is the drafter's first."""
        return bool(self._auto.alarms.failed(drafter, reason))

    # DraftValues, for the choice among drafters (drafting/choosing_drafter.py).

    @property
    def lookup_common(self) -> bool:
        """Whether lookup succeeds often."""
        return self._auto.lookups.common

    def looks_up(self, sequence_id: int) -> bool:
        """Whether the sequence's text should be searched for drafts."""
        return self.plans.get(sequence_id, NO_DRAFTS).looks_up

    def evaluate_lookup(self, proposal: Drafts) -> tuple[int, float]:
        """How many looked-up drafts are worth verifying, and their expected tokens minus their price."""
        return self._auto.value.lookup_value(accumulate(proposal.confidences, mul))

    def best_model(self, sequence_id: int, steps: int, sharing: int) -> tuple[str | None, float]:
        """The model whose drafts are worth most, and the worth that looked-up drafts must exceed, in tokens.

        None if there is no model or `steps` is 0. `sharing`: sequences that draft together and share the steps' time.
        """
        kind = self._kinds.get(sequence_id)
        if not self._models or kind is None:
            return next(iter(self._models), None) if steps else None, 0.0
        ahead = 0.0 if self._auto.lookups.suffices(sequence_id) else _LOOKUP_LEAD
        if not steps:
            return None, ahead
        worth = {
            name: self._auto.value.model_value(sequence_id, kind.by(name), steps, sharing) for name in self._models
        }
        best = max(worth, key=worth.__getitem__)
        return best, worth[best] + ahead

    def observe_lookup(self, sequence_id: int, kept: Drafts) -> None:
        """Learns which looked-up drafts were kept for the sequence; none if a model drafts instead."""
        rows = self.evaluate_lookup(kept)[0] if kept else 0
        self._auto.lookups.observe(sequence_id, sum(accumulate(kept.confidences[:rows], mul)) if rows else 0.0)
