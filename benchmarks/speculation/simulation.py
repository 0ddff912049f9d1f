"""Draft depths in simulation: a policy between texts that say what stands and a machine that says what it takes.

Texts and machine come from recordings (record_rounds.py) or are made up. What a policy sees is noisy; what it is scored
by are expected seconds, so that a short simulation tells depths apart that a noisy machine would not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import mul
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.speculation.recorders import ROUND_COLUMNS, leads
from outrider.workers.depth.acceptance import DraftKind, temperature_class
from outrider.workers.depth.policy import DepthPolicy
from outrider.workers.depth.round_time import Shape
from outrider.workers.drafting.stopping import made_together
from outrider.workers.types.requests.request import Request
from outrider.workers.types.requests.sampling_params import SamplingParams
from outrider.workers.types.rounds.draft_plan import NO_DRAFTS, DraftPlan
from outrider.workers.types.rounds.drafts import Drafts
from outrider.workers.types.rounds.round import LENGTH, RUNNING, Round, Verdict, ints, offsets
from outrider.workers.types.rounds.sequence import Sequence as EngineSequence

Floats = NDArray[np.float64]


class Place(NamedTuple):
    """Where a sequence stands: how many of its next drafts are its text's own, and their leads."""

    accepted: int
    leads: list[float]


class Text(NamedTuple):
    """A sequence's places, one for each token, and how it is sampled."""

    kind: DraftKind
    places: list[Place]


def recorded_text(places: NDArray[np.uint8], temperature: float) -> Text:
    """From a recording of recorders.TextRecorder."""
    columns = zip(places[:, 0].tolist(), leads(places).tolist(), strict=True)
    return Text(DraftKind("mtp", temperature_class(temperature)), [Place(accepted, own) for accepted, own in columns])


class Machine(Protocol):
    """What rounds take."""

    def seconds(self, shape: Shape) -> tuple[float, float]:
        """Expected, to the verdict and from there to the drafts."""
        ...

    def noise(self, rng: np.random.Generator) -> float:
        """What a single round takes over what is expected."""
        ...


class RecordedMachine:
    """From a recording of recorders.RoundRecorder, by number of sequences."""

    def __init__(self, rounds: NDArray[np.float32]) -> None:
        """`rounds` [n, ROUND_COLUMNS], of any numbers of sequences."""
        self._by_sequences: dict[int, _Fitted] = {}
        for sequences in np.unique(rounds[:, 0]).astype(int).tolist():
            self._by_sequences[sequences] = _Fitted(rounds[rounds[:, 0] == sequences].astype(np.float64))

    def seconds(self, shape: Shape) -> tuple[float, float]:
        fitted = self._by_sequences[min(self._by_sequences, key=lambda known: abs(known - shape.sequences))]
        return fitted.seconds(shape)

    def noise(self, rng: np.random.Generator) -> float:
        fitted = self._by_sequences[min(self._by_sequences)]
        return float(rng.choice(fitted.ratios))


class VaryingSpeed:
    """A machine whose speed varies by itself, over tenths of a second and over seconds."""

    SPREADS = ((0.18, 120), (0.12, 3000))  # spread of the logarithm; rounds that one outlasts, times two

    def __init__(self, machine: Machine, seed: int) -> None:
        self._machine, self._rng = machine, np.random.default_rng(seed)
        self._slowdowns = [float(spread * self._rng.normal()) for spread, _ in self.SPREADS]

    def seconds(self, shape: Shape) -> tuple[float, float]:
        return self._machine.seconds(shape)

    def noise(self, rng: np.random.Generator) -> float:
        for n, (spread, lasting) in enumerate(self.SPREADS):
            keep = math.exp(-1 / lasting)
            self._slowdowns[n] = keep * self._slowdowns[n] + math.sqrt(1 - keep**2) * spread * self._rng.normal()
        return self._machine.noise(rng) * math.exp(sum(self._slowdowns))


class _Fitted:
    """Medians of the seconds to the verdict by rows; the seconds to the drafts by least squares."""

    def __init__(self, rounds: Floats, window: int = 9) -> None:
        column = dict(zip(ROUND_COLUMNS, rounds.T, strict=True))
        short = column["context"] <= column["context"].max() / 2  # of the two that were recorded
        order = np.argsort(column["rows"][short], kind="stable")
        rows, took = column["rows"][short][order], column["round_s"][short][order]
        self._rows = np.unique(rows)
        nearest = [np.argsort(np.abs(rows - each), kind="stable") for each in self._rows]
        counts = [max(window, int((rows == each).sum())) for each in self._rows]
        medians = [float(np.median(took[near[:count]])) for near, count in zip(nearest, counts, strict=True)]
        self._took = np.maximum.accumulate(medians)
        spread = float(np.var(rows))
        self._slope = max(float(np.cov(rows, took)[0, 1]) / spread, 0.0) if spread else 0.0  # beyond what was recorded
        features = self._features(column["followed"], column["steps"], column["drafts"])
        keep = column["draft_s"] <= 3 * np.median(column["draft_s"])
        self._drafting = np.linalg.lstsq(features[keep], column["draft_s"][keep], rcond=None)[0]
        expected = np.interp(rows, self._rows, self._took)
        self.ratios = np.clip(took / expected, 0.5, 4.0)  # of like contexts: a longer one is no noise

    def seconds(self, shape: Shape) -> tuple[float, float]:
        features = self._features(*(np.array([float(v)]) for v in (shape.followed, shape.steps, shape.drafts)))
        beyond = self._slope * max(shape.rows - self._rows[-1], 0.0)
        round_s = float(np.interp(shape.rows, self._rows, self._took)) + beyond
        return round_s, max(float((features @ self._drafting)[0]), 0.0)

    @staticmethod
    def _features(followed: Floats, steps: Floats, drafts: Floats) -> Floats:
        ones = np.ones_like(steps)
        return np.stack([(followed > 0) * ones, followed, (steps > 0) * ones, steps, drafts], axis=1)


@dataclass(slots=True)
class Played:
    """A round as it went, sequence by sequence, and what was drafted after it."""

    ids: list[int]
    contexts: list[int]  # tokens before the round
    rows: list[int]
    accepted: list[int]
    emitted: list[int]
    ended: list[bool]
    round_s: float
    draft_s: float
    made: dict[int, list[float]]  # leads of the drafts made, by sequence


class Policy(Protocol):
    """What is simulated."""

    def plan(self, sequence_id: int, kind: DraftKind, context: int, together: int) -> DraftPlan:
        """For the sequence's next round, in which so many are `together`."""
        ...

    def observe(self, played: Played) -> dict[int, int]:
        """How many of the drafts that were made to verify, by sequence."""
        ...

    def forget(self, sequence_id: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Static:
    """Always so many drafts; 0 is an engine without a drafter."""

    depth: int

    def plan(self, sequence_id: int, kind: DraftKind, context: int, together: int) -> DraftPlan:
        return DraftPlan(self.depth, follows=self.depth > 0)

    def observe(self, played: Played) -> dict[int, int]:
        return {each: len(leads) for each, leads in played.made.items()}

    def forget(self, sequence_id: int) -> None:
        pass


@dataclass(slots=True)
class Auto:
    """The engine's own."""

    policy: DepthPolicy = field(default_factory=lambda: DepthPolicy("auto"))
    _known: set[int] = field(default_factory=set)
    _planned: dict[int, DraftPlan] = field(default_factory=dict)

    def plan(self, sequence_id: int, kind: DraftKind, context: int, together: int) -> DraftPlan:
        if sequence_id not in self._known:
            self._known.add(sequence_id)
            params = SamplingParams(temperature=(0.0, 0.8, 2.0)[kind.temperature_class])
            request = Request(request_id="", prompt_token_ids=(3,) * context, params=params, seed=0)
            sequence = EngineSequence(
                sequence_id=sequence_id, request=request, output_index=0, token_ids=[3] * context,
                limit=1 << 30, draft_ceiling=16,
            )  # fmt: skip
            self.policy.admit(sequence, together)
        self._planned[sequence_id] = self.policy.plans.get(sequence_id, NO_DRAFTS)
        return self._planned[sequence_id]

    def observe(self, played: Played) -> dict[int, int]:
        plans = [self._planned[each] for each in played.ids]
        round = Round(
            sequence_ids=ints(played.ids), query_offsets=offsets(played.rows), token_ids=ints([5] * sum(played.rows)),
            starts=ints([context - 1 for context in played.contexts]), sample_counts=ints(played.rows),
            follows=ints([plan.follows for plan in plans]), followed_from=ints([1] * len(plans)),
        )  # fmt: skip
        verdict = Verdict(
            token_offsets=offsets(played.emitted), token_ids=ints([5] * sum(played.emitted)),
            accepted_rows=ints(played.emitted), drafts_accepted=ints(played.accepted),
            finish=ints([LENGTH if over else RUNNING for over in played.ended]),
        )  # fmt: skip
        drafts = {each: Drafts([5] * len(leads), leads) for each, leads in played.made.items() if leads}
        kept = self.policy.observe(round, verdict, played.round_s, played.draft_s, drafts)
        return {each: len(tokens) for each, tokens in kept.items()}

    def forget(self, sequence_id: int) -> None:
        self._known.discard(sequence_id)
        self.policy.forget(sequence_id)


@dataclass(slots=True)
class _Running:
    """A sequence on its way through its text."""

    sequence_id: int
    text: Text
    context: int
    place: int = 0
    drafts: list[float] = field(default_factory=list)  # leads of what will be verified

    @property
    def ended(self) -> bool:
        return self.place >= len(self.text.places)


@dataclass(slots=True)
class Score:
    """What a simulation came to."""

    tokens: int = 0
    seconds: float = 0.0
    rounds: int = 0
    verified: int = 0
    made: int = 0

    @property
    def speed(self) -> float:
        return self.tokens / self.seconds


class Simulation:
    """A replica whose sequences never run out: each that ends makes room for the next text."""

    def __init__(
        self, policy: Policy, machine: Machine, texts: Sequence[Text], *, context: int = 96, seed: int = 0
    ) -> None:
        self._policy, self._machine, self._texts = policy, machine, texts
        self._rng = np.random.default_rng(seed)
        self._context = context
        self._started = 0
        self._running: list[_Running] = []
        self.score = Score()

    def run(self, sequences: int, rounds: int) -> Score:
        """So many rounds with so many sequences."""
        for _ in range(rounds):
            self._fill(sequences)
            self._round()
        return self.score

    def _fill(self, sequences: int) -> None:
        while len(self._running) < sequences:
            text = self._texts[self._started % len(self._texts)]
            self._running.append(_Running(self._started, text, self._context))
            self._started += 1
        for gone in self._running[sequences:]:
            self._policy.forget(gone.sequence_id)
        del self._running[sequences:]

    def _round(self) -> None:
        running, policy = self._running, self._policy
        contexts = [each.context + each.place for each in running]
        plans = [
            policy.plan(each.sequence_id, each.text.kind, context, len(running))
            for each, context in zip(running, contexts, strict=True)
        ]
        rows = [1 + len(each.drafts) for each in running]
        accepted, emitted = self._advance()
        going = [(each, plan) for each, plan in zip(running, plans, strict=True) if not each.ended]
        leads = [each.text.places[each.place].leads[: plan.depth] for each, plan in going]
        depths = made_together([plan.stop for _, plan in going], leads)
        sampled = [each.text.kind.temperature_class > 0 for each in running]
        shape = Shape(
            len(running), sum(rows), float(sum(contexts)), float(sum(map(mul, contexts, rows))),
            sum(map(mul, rows, sampled)), max(depths, default=0), sum(depths), sum(depths) * sampled[0],
            sum(n for n, plan in zip(emitted, plans, strict=True) if plan.follows),
        )  # fmt: skip
        round_s, draft_s = self._settle(shape, sum(emitted))
        for each in running:
            if each.ended:
                policy.forget(each.sequence_id)
        made = {each.sequence_id: own[:depth] for (each, _), own, depth in zip(going, leads, depths, strict=True)}
        ids, ended = [each.sequence_id for each in running], [each.ended for each in running]
        kept = policy.observe(Played(ids, contexts, rows, accepted, emitted, ended, round_s, draft_s, made))
        for each, _ in going:
            each.drafts = made[each.sequence_id][: kept.get(each.sequence_id, 0)]
        self._running = [each for each, _ in going]
        self.score.made += sum(depths)

    def _advance(self) -> tuple[list[int], list[int]]:
        """Drafts accepted and tokens emitted, by sequence."""
        accepted, emitted = [], []
        for each in self._running:
            stand = min(each.text.places[each.place].accepted, len(each.drafts))
            gained = min(stand + 1, len(each.text.places) - each.place)
            each.place += gained
            accepted.append(min(stand, gained))
            emitted.append(gained)
        return accepted, emitted

    def _settle(self, shape: Shape, tokens: int) -> tuple[float, float]:
        """Scores the round by what is expected; gives the seconds that are seen."""
        round_s, draft_s = self._machine.seconds(shape)
        score = self.score
        score.tokens += tokens
        score.seconds += round_s + draft_s
        score.rounds += 1
        score.verified += shape.rows - shape.sequences
        return round_s * self._machine.noise(self._rng), draft_s * self._machine.noise(self._rng)
