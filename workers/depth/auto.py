"""Automatic depth: how many tokens to draft for each sequence, and which of the drafts to verify.

Combines acceptance, round time and price, within the budget that limits losses. Pure: it reads no clock and knows no
rounds. Output text never depends on it.
"""

from collections.abc import Sequence

from outrider.workers.depth.acceptance import Acceptance, MadeDrafts
from outrider.workers.depth.alarms import Alarms
from outrider.workers.depth.budget import Budget
from outrider.workers.depth.lookups import Lookups
from outrider.workers.depth.round_summary import DraftOutcome
from outrider.workers.depth.round_time import RoundTime, Shape, size_class
from outrider.workers.depth.value import Live, Value
from outrider.workers.types.requests.sampling_params import LOOKUP
from outrider.workers.types.rounds.draft_plan import NO_DRAFTS, DraftPlan

DEEPEST = 8  # drafts of a sequence in one round: with 12 or 16 scout's greedy code is no faster
_MARGIN = 0.02  # gain needed to start drafting, as a share of a round's tokens; continuing needs none
_TAUGHT = 2  # sequences per round that acceptance is learned from, in turn: each takes 5 us
_RETRY = 16  # a sequence that is not worth drafting for gets a draft in one of so many plans


class AutoDepth:
    """Chooses depths for the sequences of one replica. Not thread-safe."""

    def __init__(
        self, deepest: int, time: RoundTime, lookups: Lookups | None = None, *, every_step: bool = False
    ) -> None:
        """`deepest`: most drafts; 0 without a model that drafts. `time`, `lookups`: existing estimates.

        `every_step`: early stopping saves no time, since all steps up to the deepest always run.
        """
        self.acceptance, self.time, self.lookups = (
            Acceptance(max(deepest, 1)),
            time,
            Lookups() if lookups is None else lookups,
        )
        self.value = Value(self.acceptance, self.time, deepest, every_step=every_step)
        self.alarms = Alarms()
        self._deepest, self._every_step = deepest, every_step
        self._budgets: dict[tuple[int, int], Budget] = {}  # by size class and temperature class
        self._made: dict[int, MadeDrafts] = {}  # by sequence: drafts that are being verified
        self._turn = 0

    def __len__(self) -> int:
        """Number of sequences with any state here."""
        return max(len(self.acceptance), len(self._made), len(self.lookups))

    def budget(self, sequences: int, temperature_class: int) -> Budget:
        """The budget of rounds with about so many sequences and this highest temperature class."""
        key = size_class(sequences), temperature_class
        return self._budgets.get(key) or self._budgets.setdefault(key, Budget.of(key[0]))

    def plan(self, live: Sequence[Live], plain: Shape, budget: Budget, *, drafting: bool) -> list[DraftPlan]:
        """Plans for sequences that share rounds of shape `plain`. `drafting`: their last plans had drafts."""
        if not budget.enabled:
            return [NO_DRAFTS] * len(live)
        plans = self._plans(live, plain, budget, drafting=drafting)
        lookup_only = map(self.lookups.lookup_only, [each.sequence_id for each in live])
        return [DraftPlan(looks_up=own.looks_up) if one else own for own, one in zip(plans, lookup_only, strict=True)]

    def _plans(self, live: Sequence[Live], plain: Shape, budget: Budget, *, drafting: bool) -> list[DraftPlan]:
        """The plans before those of lookup-only sequences are replaced."""
        follow = DraftPlan(follows=self._deepest > 0, looks_up=not budget.plain_due)
        if budget.plain_due or not self.time.known:
            return [follow] * len(live)
        self._turn += 1
        best = self.value.best_depths(live, plain)
        margin = 0.0 if drafting else _MARGIN * (plain.sequences + best.brings)
        if not self._deepest or (best.gain <= margin and not budget.probes):
            return [follow] * len(live)
        # Drafts of two rounds are made before the first round's verdict is known
        safe, most = (self.value.affordable_depth(live, plain, lost / 2) for lost in (budget.spare, budget.level))
        return [
            self._plan_of(each, min(self._depth(depth, safe, probing=budget.probes > 0), most))
            for each, depth in zip(live, best.depths, strict=True)
        ]

    def _depth(self, best: int, safe: int, *, probing: bool) -> int:
        """Most drafts to make. More than the best depth if early stopping can end each sequence's drafting itself."""
        if self._every_step:
            return max(best, int(probing))
        return max(best, safe) if best or probing else 0

    def _plan_of(self, each: Live, depth: int) -> DraftPlan:
        if self.lookups.suffices(each.sequence_id):
            return DraftPlan(looks_up=True)
        depth = depth or int((self._turn + each.sequence_id) % _RETRY == 0)
        return DraftPlan(depth, follows=True, stop=self.value.stop_rule(each), looks_up=True)

    def plan_new(self, each: Live, *, drafting: bool) -> DraftPlan:
        """The plan of a sequence before its first round. `drafting`: other sequences' plans have drafts."""
        if not drafting or not self.value.price or self._every_step:
            return DraftPlan(follows=self._deepest > 0, looks_up=True)
        return self._plan_of(each, self._deepest)

    def verify(self, made: Sequence[MadeDrafts], base: Shape, budget: Budget) -> list[int]:
        """How many leading drafts of each sequence to verify. `base`: the next round without these drafts."""
        counts = self.value.worth_verifying(made, base)
        if budget.probes:
            counts = [max(count, 1) for count in counts]
        untaught = _TAUGHT
        for each, count in zip(made, counts, strict=True):
            self._made.pop(each.sequence_id, None)
            if each.kind.drafter == LOOKUP:  # learns by itself (drafting/match_acceptance.py)
                continue
            if count:
                self._made[each.sequence_id] = each
            elif untaught:
                self.acceptance.observe_unverified(each)
                untaught -= 1
        return counts

    def remember(self, made: MadeDrafts) -> None:
        """Registers drafts that are verified in any case (fixed depth), so that `learn` uses them."""
        self._made[made.sequence_id] = made._replace(leads=made.leads[: max(self._deepest, 1)])

    def learn(self, outcomes: Sequence[DraftOutcome]) -> list[str]:
        """Learns from the outcomes of a round's drafts. Returns messages of new alarms."""
        judged = [each for each in outcomes if each.judged > 0 and each.sequence_id in self._made]
        if not judged:
            return []
        self._turn += 1
        stride = max(len(judged) // _TAUGHT, 1)
        for each in judged[self._turn % stride :: stride]:
            made = self._made[each.sequence_id]
            known = min(each.judged, len(made.leads))
            self.acceptance.observe(made, known, min(each.accepted, known), usual=not each.gap)
        watched = judged[self._turn % len(judged)]
        made = self._made[watched.sequence_id]
        known = min(watched.judged, len(made.leads))
        return self.alarms.observe(made, known, min(watched.accepted, known), gap=watched.gap)

    def forget(self, sequence_id: int) -> None:
        """The sequence ended."""
        self.acceptance.forget(sequence_id)
        self.lookups.forget(sequence_id)
        self._made.pop(sequence_id, None)
