"""How many tokens to draft for a sequence in its next round: the engine's setting joined with the requests' own.

Pure: seconds are given to it. Depths never change the text, so any rule would do; which one is fast is auto_depth.py's.
"""

from collections.abc import Collection, Iterable, Mapping
from itertools import compress, pairwise
from operator import add, eq, mul, sub
from typing import NamedTuple

from outrider.workers.engine.outcome import RoundTime
from outrider.workers.engine.request import SpeculationFigures
from outrider.workers.engine.round import RUNNING, IntArray, Round, Verdict
from outrider.workers.engine.sequence import Sequence
from outrider.workers.sampling_params import LOOKUP, MAX_DRAFT_TOKENS, MTP
from outrider.workers.speculation.acceptance import Kind, Made
from outrider.workers.speculation.auto_depth import DEEPEST, AutoDepth, Live, Outcome
from outrider.workers.speculation.cost import Shape
from outrider.workers.speculation.drafter import Draft

_PLANNED_AT_ONCE = 24  # sequences: so many beyond the first, begun, and depths are set a round less often


class DepthPolicy:
    """The engine's speculation setting joined with the requests' own. Not thread-safe."""

    def __init__(
        self, speculation: str | int, experts: tuple[int, int] = (1, 1), models: Collection[str] = (MTP,)
    ) -> None:
        """`speculation` is the engine's: "off", "auto", or a fixed depth, which bounds the requests' own too.

        `experts`: how many routed ones a layer has, and how many of them a token wakes. `models`: the drafters that pay
        for each step; the first is believed in until another has shown more.
        """
        self._default = speculation
        self._ceiling = (
            speculation if isinstance(speculation, int) else {"off": 0, "auto": MAX_DRAFT_TOKENS}[speculation]
        )
        self._models = tuple(models)
        self._made_with = min(self._ceiling, DEEPEST) if models else 0, experts
        self.reset()

    def reset(self) -> None:
        """Forgets all it has learned: the warm-up's rounds were not like others."""
        self._auto = AutoDepth(*self._made_with)
        self._kinds: dict[int, Kind] = {}  # of the sequences whose depth is "auto"
        self._heats = [0, 0, 0]  # how many of these there are by heat
        self._together = 0  # sequences that decode in the lane planned last
        self._next: dict[int, Shape] = {}  # by lane: its next round but for the drafts, as far as it is known
        self._turns: dict[int, int] = {}  # by lane: its rounds
        self._lane = 0  # the one observed last
        self._draft_s: dict[int, float] = {}  # by lane: what the drafts of its next round took to make

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
            model = next(iter(self._models), MTP)
            kind = self._kinds[sequence.sequence_id] = Kind.of(model, sequence.request.params.temperature)
            self._heats[kind.heat] += 1
            self._auto.meet()
            self._auto.account.turn_to(self._together + 1, self._heat)
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
        if not self._ceiling or self._auto.figures.stopped or not self._auto.cost.known:
            return RoundTime()
        decoding = len(round.token_ids) == sum(round.sample_counts.tolist())
        if not decoding:
            return RoundTime()
        context = sum(round.starts.tolist()) + round.sequences
        undrafted_s = self._auto.cost.undrafted(round.sequences, context)
        return RoundTime(self._draft_s.get(round.lane, 0.0) + round_s, undrafted_s)

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
        policy on the round before.
        """
        if not self._ceiling:
            return
        self._auto.account.turn_to(round.sequences, self._heat)
        if not drafts and self._slept(round, verdict, round_s):
            return
        self._draft_s[round.lane] = draft_s
        seen = _Seen.of(round, verdict, drafts, self._model_of(drafts))
        kinds = self._kinds
        if seen.whole:
            own = all(each.sequence_id in kinds or not each.verified for each in seen.outcomes)
            tokens = len(verdict.token_ids)
            self._auto.observe(seen.outcomes, seen.shape, tokens, round_s, draft_s, decided_s, own=own)
        else:
            self._auto.learn_acceptance(seen.outcomes)
        self._forget((*round.ends.tolist(), *seen.finished))
        self._plan(round.lane, seen.going, seen.whole)

    def _model_of(self, drafts: Mapping[int, list[Draft]] | None) -> str:
        """Which model took steps for these; of several one that is not the usual one, and takes longer."""
        usual = next(iter(self._models), MTP)
        if drafts is None or len(self._models) < 2:
            return usual
        return min({own[0].drafter for own in drafts.values() if own} - {LOOKUP, usual}, default=usual)

    def _slept(self, round: Round, verdict: Verdict, round_s: float) -> bool:
        """Whether speculation had no part in a round, which is not worth looking at."""
        if len(round.token_ids) != round.sequences:
            return False
        if self._kinds:
            if not self._auto.sleeps():
                return False
            context = float(sum(round.starts.tolist()) + round.sequences)
            self._auto.slept(Shape(round.sequences, round.sequences, context, context), round_s)
        ended = round.ends.tolist()
        if any(verdict.finish.tolist()):
            finished = round.sequence_ids[verdict.finish != RUNNING].tolist()
            ended += finished
            self._together = round.sequences - len(finished)
        self._forget(ended)
        return True

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

    def looks_up(self, sequence_id: int) -> bool:
        """Whether what a sequence said should be looked up for drafts."""
        return sequence_id not in self._kinds or not self._auto.resting

    def looked_up(self, proposal: list[Draft]) -> tuple[int, float]:
        """How many of a proposal's drafts are worth verifying, and what they bring above their price, in tokens."""
        return self._auto.looked_up([draft.confidence for draft in proposal])

    def best_model(self, sequence_id: int, steps: int, sharing: int) -> tuple[str | None, float]:
        """The model whose `steps` drafts are worth most, and how much: None where there is no model, or no step.

        `sharing`: how many sequences draft together, and share the price of the steps.
        """
        kind = self._kinds.get(sequence_id)
        if not steps or not self._models or kind is None:
            return next(iter(self._models), None) if steps else None, 0.0
        worths = {name: self._auto.model_worth(sequence_id, kind.by(name), steps, sharing) for name in self._models}
        best = max(worths, key=worths.__getitem__)
        return best, worths[best]

    def _plan(self, lane: int, going: Mapping[int, int], whole: bool) -> None:
        """Sets the depths of a lane's sequences, by id with their tokens: of many not in every round."""
        self._lane, self._together = lane, len(going)
        context = float(sum(going.values()))
        self._next[lane] = plain = Shape(len(going), len(going), context, context)
        self._turns[lane] = turn = self._turns.get(lane, 0) + 1
        if turn % (-(-(len(going) - 1) // _PLANNED_AT_ONCE) + 1):
            return
        kinds = self._kinds
        live = [Live(i, kinds[i], tokens) for i, tokens in going.items() if i in kinds]
        if not live:
            self._auto.idle(lane)
            return
        self._auto.account.turn_to(len(going), self._heat)
        self._auto.plan(live, plain, lane=lane, measurable=whole and len(live) == len(going))

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
            made.append(Made(sequence_id, kind, [draft.confidence for draft in own]))
        if made:
            for each, count in zip(made, self._kept(made, fixed), strict=True):
                del tokens[each.sequence_id][count:]
        return tokens

    def _kept(self, made: list[Made], fixed: int) -> list[int]:
        """How many of the drafts to verify, of each, beside `fixed` ones that are verified whatever they cost."""
        plain = self._next[self._lane]
        return self._auto.keep(made, plain._replace(rows=plain.rows + fixed) if fixed else plain)


def _steps_made(sequence_ids: Iterable[int], drafts: Mapping[int, list[Draft]]) -> list[int]:
    """Steps that were run after a round: none for a sequence whose drafts were looked up, or failed."""
    made = [drafts.get(sequence_id) for sequence_id in sequence_ids]
    return [len(own) if own and own[0].drafter != LOOKUP else 0 for own in made]


class _Seen(NamedTuple):
    """A round and its verdict, read."""

    outcomes: list[Outcome]
    shape: Shape
    whole: bool  # no prompt chunks: its time can be compared
    finished: list[int]
    going: dict[int, int]  # sequences that go on decoding, and their tokens

    @classmethod
    def of(cls, round: Round, verdict: Verdict, drafts: Mapping[int, list[Draft]] | None, model: str) -> "_Seen":
        """Column by column: of many sequences that takes a third of the time that one after another does.

        `drafts`: those made after it; None: as many as it asks for. `model`: whose steps these are.
        """
        ids, counts, starts = round.sequence_ids.tolist(), round.sample_counts.tolist(), round.starts.tolist()
        rows, emitted = _lengths(round.query_offsets), _lengths(verdict.token_offsets)
        contexts = list(map(add, starts, rows))
        ended = [finish != RUNNING for finish in verdict.finish.tolist()]
        goes = [count > 0 and not over for count, over in zip(counts, ended, strict=True)]
        steps = list(compress(round.draft_steps.tolist(), goes)) if drafts is None else _steps_made(ids, drafts)
        shape = Shape(
            len(ids), round.rows, float(sum(contexts)), float(sum(map(mul, rows, contexts))),
            max(steps, default=0), sum(steps), sum(map(mul, verdict.accepted_rows.tolist(), round.upkeep.tolist())),
            model,
        )  # fmt: skip
        gaps = [held > 1 for held in round.followed_from.tolist()]
        verified = [count - 1 for count in counts]
        outcomes = map(Outcome, ids, verified, verdict.drafts_accepted.tolist(), ended, gaps)
        whole = rows == counts
        decoding = list(outcomes if whole else compress(outcomes, map(eq, rows, counts)))
        lengths = map(add, map(sub, contexts, verified), emitted)
        going = dict(compress(zip(ids, lengths, strict=True), goes))
        return cls(decoding, shape, whole, list(compress(ids, ended)), going)


def _lengths(offsets: IntArray) -> list[int]:
    places = offsets.tolist()
    return [end - start for start, end in pairwise(places)]
