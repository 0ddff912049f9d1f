"""How many tokens to draft for a sequence in its next round: the engine's setting joined with the requests' own.

Pure: seconds are given to it. Depths never change the text, so any rule would do; which one is fast is auto_depth.py's.
"""

from collections.abc import Collection, Mapping
from itertools import accumulate
from operator import mul

from outrider.workers.speculation.acceptance import Kind, Made
from outrider.workers.speculation.auto_depth import DEEPEST, AutoDepth
from outrider.workers.speculation.cost import RoundCost
from outrider.workers.speculation.fixed_drafts import FixedDrafts
from outrider.workers.speculation.hearing import Hearing
from outrider.workers.speculation.kinds import Kinds
from outrider.workers.speculation.patience import Patience
from outrider.workers.speculation.worths import Live
from outrider.workers.types.counters import SpeculationFigures
from outrider.workers.types.drafts import Drafts
from outrider.workers.types.round import Round, Verdict
from outrider.workers.types.round_time import RoundTime
from outrider.workers.types.sampling_params import AUTO, LOOKUP, MAX_DRAFT_TOKENS, MTP
from outrider.workers.types.sequence import Sequence

# Tokens by which looked-up drafts must be ahead of a model's. Of what a model makes only that is verified of which it
# is sure, in steps that others take anyway, which is better than foreseen; and a round with drafts has its own costs.
_AHEAD = 1.0


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
        self._kinds, self._fixed = Kinds(), FixedDrafts(self._auto.alarms)
        self._hearing = Hearing(self._auto, self._kinds, self._models, self.forget)
        self.expected = 0  # sequences that share a lane's rounds once those that wait have begun

    @property
    def figures(self) -> SpeculationFigures:
        """What can be told of it: price, gain, ledger, alarms. Live."""
        return self._auto.figures

    @property
    def sequences(self) -> int:
        """How many sequences it keeps something of."""
        return max(len(self._auto), len(self._kinds), len(self._fixed))

    def depth(self, sequence: Sequence) -> int:
        """Drafts to make for the sequence after the round that is being composed."""
        if self._kinds.get(sequence.sequence_id) is None:
            wanted = self._wanted(sequence)
            if wanted == "off" or not self._ceiling:
                return 0
            if wanted != "auto":
                self._fixed.meet(sequence.sequence_id, sequence.request.params.temperature)
                return min(int(wanted), self._ceiling)
            self._meet(sequence)
        return 0 if sequence.request.params.drafter == LOOKUP else self._auto.depth(sequence.sequence_id)

    def patience(self, sequence: Sequence) -> Patience:
        """When the drafting for the sequence ends before its depth: a fixed depth's never."""
        return self._auto.patience(sequence.sequence_id)

    def follows(self, sequence: Sequence) -> bool:
        """Whether models should take in the sequence's next rows. With a fixed depth always."""
        if self._kinds.get(sequence.sequence_id) is None:
            if self._wanted(sequence) != "auto":
                return True
            self._meet(sequence)
        return sequence.request.params.drafter != LOOKUP and self._auto.follows(sequence.sequence_id)

    def _wanted(self, sequence: Sequence) -> str | int:
        requested = sequence.request.params.speculation
        return self._default if requested is None else requested

    def _meet(self, sequence: Sequence) -> None:
        """Takes in a new sequence whose depth is "auto"."""
        params, model = sequence.request.params, next(iter(self._models), MTP)
        kind = Kind.of(model, params.temperature)
        if kind.heat > self._kinds.heat:  # what was run is the ledger's of those that ran it
            self._hearing.catch_up()
        self._hearing.wake()
        self._kinds.add(sequence.sequence_id, kind)
        if params.drafter in (None, AUTO, LOOKUP):
            self._auto.worths.found.meet(sequence.sequence_id, alone=params.drafter == LOOKUP)
        sequences, prompt = max(self._hearing.together + 1, self.expected), len(sequence.token_ids)
        self._auto.account.turn_to(sequences, self._kinds.heat)
        live, room = Live(sequence.sequence_id, kind, prompt), sequence.limit - prompt
        self._auto.meet(live, room, followed=prompt if params.drafter != LOOKUP else 0, sequences=sequences)
        if not self._auto.depth(sequence.sequence_id):  # else depths may hold for long before it has any
            self._hearing.turn()

    def time_of(self, round: Round, round_s: float) -> RoundTime:
        """What a round took, `round_s` of it since its scheduling, and would have taken without drafts, as modelled.

        Unknown while no round's time is, while speculation is stopped, and of rounds with prompt chunks.
        """
        return self._hearing.time_of(round, round_s)

    def observe(
        self,
        round: Round,
        verdict: Verdict,
        round_s: float,
        draft_s: float,
        drafts: Mapping[int, Drafts] | None = None,
        decided_s: float = 0.0,
    ) -> None:
        """Learns from a round: `round_s` from its scheduling until its tokens are out, `draft_s` from then on.

        `drafts`: those made in that time; None: as many as the round asks for. `decided_s`: of `round_s`, by this
        policy on the round before.
        """
        if self._ceiling:
            self._auto.warnings += self._fixed.observe(round, verdict)
            self._hearing.observe(round, verdict, round_s, draft_s, drafts, decided_s)

    def forget(self, sequence_id: int) -> None:
        """Drops what is kept for a sequence that ended, or will never begin."""
        self._auto.forget(sequence_id)
        self._kinds.forget(sequence_id)
        self._fixed.forget(sequence_id)

    @property
    def resting(self) -> bool:
        """Whether nobody should draft whose depth is not fixed, or there is no such sequence."""
        return not len(self._kinds) or self._auto.resting

    @property
    def copied(self) -> bool:
        """Whether a good part of the texts of late was looked up."""
        return self._auto.worths.found.common

    def looks_up(self, sequence_id: int) -> bool:
        """Whether what a sequence said should be looked up for drafts."""
        return sequence_id not in self._kinds or not self._auto.resting

    def looked_up(self, proposal: Drafts) -> tuple[int, float]:
        """How many drafts of a proposal are worth verifying, and the tokens that they bring above other rows' price."""
        return self._auto.worths.looked_up(proposal.confidences)

    def best_model(self, sequence_id: int, steps: int, sharing: int) -> tuple[str | None, float]:
        """The model whose `steps` drafts are worth most, and what looked-up ones must be worth to be preferred.

        None where there is no model, or no step. `sharing`: how many sequences draft together, and share the price of
        the steps.
        """
        kind = self._kinds.get(sequence_id)
        if not self._models or kind is None:
            return next(iter(self._models), None) if steps else None, 0.0
        ahead = 0.0 if self._auto.worths.found.carries(sequence_id) else _AHEAD
        if not steps:
            return None, ahead
        worths = {name: self._auto.worths.model(sequence_id, kind.by(name), steps, sharing) for name in self._models}
        best = max(worths, key=worths.__getitem__)
        return best, worths[best] + ahead

    def chose(self, sequence_id: int, kept: Drafts) -> None:
        """What was looked up for the sequence is to be verified so far; nothing: a model drafts, or nobody."""
        rows, tokens = 0, 0.0
        if kept:
            rows, _ = self.looked_up(kept)
            tokens = sum(accumulate(kept.confidences[:rows], mul))
        if self._auto.worths.found.add(sequence_id, rows, tokens):
            self._hearing.turn()

    def failed(self, drafter: str, reason: str) -> bool:
        """A drafter raised an error: counted. Whether that is news."""
        return bool(self._auto.alarms.failed(drafter, reason))

    def take_warnings(self) -> list[str]:
        """What was found to be wrong since the last call, with its likely cause; each thing once."""
        if not self._auto.warnings:
            return []
        taken, self._auto.warnings = self._auto.warnings, []
        return taken

    def worthwhile(self, drafts: Mapping[int, Drafts]) -> dict[int, list[int]]:
        """Of drafts by sequence id those to verify, after their round was observed.

        With a fixed depth all; else those that are worth their time, whoever made them.
        """
        made: list[Made] = []
        fixed, kinds, tokens = 0, self._kinds, dict[int, list[int]]()
        for sequence_id, own in drafts.items():
            kind = kinds.get(sequence_id)
            if kind is None:
                fixed += len(own)
                self._fixed.made(sequence_id, own)
            elif own.drafter != kind.drafter:
                own, kind = self._others(sequence_id, own, kind)
            token_ids = tokens[sequence_id] = own.token_ids
            if kind is not None and token_ids:
                made.append(Made(sequence_id, kind, own.confidences))
        for each, count in zip(made, self._kept(made, fixed) if made else (), strict=True):
            if count < len(each.leads):
                tokens[each.sequence_id] = tokens[each.sequence_id][:count]
        return tokens

    def _others(self, sequence_id: int, own: Drafts, kind: Kind) -> tuple[Drafts, Kind]:
        """Drafts that are not its usual model's: looked-up ones so far as rows pay, another model's from now on."""
        if own.drafter == LOOKUP:
            return own.first(self.looked_up(own)[0]), kind.by(LOOKUP)
        kind = kind.by(own.drafter)
        if own:
            self._kinds.turn(sequence_id, kind)
            self._hearing.turn()
        return own, kind

    def _kept(self, made: list[Made], fixed: int) -> list[int]:
        """How many of the drafts to verify, of each, beside `fixed` ones that are verified whatever they cost."""
        plain = self._hearing.plain
        self._auto.account.turn_to(plain.sequences, self._kinds.heat)
        return self._auto.keep(made, plain._replace(rows=plain.rows + fixed) if fixed else plain)
