"""Draft depths in simulation: a policy between texts that say what stands and a machine that says what it takes.

Texts and machine come from recordings (record.py) or are made up. What a policy sees is noisy; what it is scored by
are expected seconds, so that a short simulation tells depths apart that a noisy machine would not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from recorders import ROUND_COLUMNS, leads

from outrider.workers.speculation.acceptance import Kind, Made
from outrider.workers.speculation.auto_depth import AutoDepth, Outcome
from outrider.workers.speculation.known_times import Shape
from outrider.workers.speculation.patience import ENDLESS, Patience, made_together
from outrider.workers.speculation.worths import Live

Floats = NDArray[np.float64]


class Place(NamedTuple):
    """Where a sequence stands: how many of its next drafts are its text's own, and their leads."""

    accepted: int
    leads: list[float]


class Text(NamedTuple):
    """A sequence's places, one for each token, and how it is sampled."""

    kind: Kind
    places: list[Place]


def recorded_text(places: NDArray[np.uint8], temperature: float) -> Text:
    """From a recording of recorders.TextRecorder."""
    columns = zip(places[:, 0].tolist(), leads(places).tolist(), strict=True)
    return Text(Kind.of("mtp", temperature), [Place(accepted, own) for accepted, own in columns])


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


class Moody:
    """A machine with moods: slower and faster than it is, for a tenth of a second and for some seconds."""

    MOODS = ((0.18, 120), (0.12, 3000))  # spread of the logarithm; rounds that one outlasts, times two

    def __init__(self, machine: Machine, seed: int) -> None:
        self._machine, self._rng = machine, np.random.default_rng(seed)
        self._moods = [float(spread * self._rng.normal()) for spread, _ in self.MOODS]

    def seconds(self, shape: Shape) -> tuple[float, float]:
        return self._machine.seconds(shape)

    def noise(self, rng: np.random.Generator) -> float:
        for n, (spread, lasting) in enumerate(self.MOODS):
            keep = math.exp(-1 / lasting)
            self._moods[n] = keep * self._moods[n] + math.sqrt(1 - keep**2) * spread * self._rng.normal()
        return self._machine.noise(rng) * math.exp(sum(self._moods))


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


class Policy(Protocol):
    """What is simulated."""

    def depths(self, live: Sequence[Live]) -> list[int]:
        """Drafts to make for each."""
        ...

    def patience(self, sequence_id: int) -> Patience:
        """When those for a sequence end before."""
        ...

    def follows(self, live: Sequence[Live]) -> list[bool]: ...

    def keep(self, made: Sequence[Made], base: Shape) -> list[int]:
        """How many drafts of each to verify."""
        ...

    def observe(
        self, outcomes: Sequence[Outcome], shape: Shape, tokens: int, round_s: float, draft_s: float
    ) -> None: ...

    def forget(self, sequence_id: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Static:
    """Always so many drafts; 0 is an engine without a drafter."""

    depth: int

    def depths(self, live: Sequence[Live]) -> list[int]:
        return [self.depth] * len(live)

    def patience(self, sequence_id: int) -> Patience:
        return ENDLESS

    def follows(self, live: Sequence[Live]) -> list[bool]:
        return [self.depth > 0] * len(live)

    def keep(self, made: Sequence[Made], base: Shape) -> list[int]:
        return [len(each.leads) for each in made]

    def observe(self, outcomes: Sequence[Outcome], shape: Shape, tokens: int, round_s: float, draft_s: float) -> None:
        pass

    def forget(self, sequence_id: int) -> None:
        pass


@dataclass(slots=True)
class Auto:
    """The engine's own."""

    auto: AutoDepth = field(default_factory=AutoDepth)

    def depths(self, live: Sequence[Live]) -> list[int]:
        self.auto.account.turn_to(len(live), max(each.kind.heat for each in live))
        self.auto.plan(live)
        return [self.auto.depth(each.sequence_id) for each in live]

    def patience(self, sequence_id: int) -> Patience:
        return self.auto.patience(sequence_id) if self.auto.depth(sequence_id) > 1 else ENDLESS

    def follows(self, live: Sequence[Live]) -> list[bool]:
        return [self.auto.follows(each.sequence_id) for each in live]

    def keep(self, made: Sequence[Made], base: Shape) -> list[int]:
        return self.auto.keep(made, base) if made else []

    def observe(self, outcomes: Sequence[Outcome], shape: Shape, tokens: int, round_s: float, draft_s: float) -> None:
        if shape.undrafted and not shape.drafts and self.auto.sleeps():
            self.auto.slept([(shape._replace(followed=0), round_s)])
        else:
            self.auto.observe(outcomes, shape, tokens, round_s, draft_s)

    def forget(self, sequence_id: int) -> None:
        self.auto.forget(sequence_id)


@dataclass(slots=True)
class _Running:
    """A sequence on its way through its text."""

    sequence_id: int
    text: Text
    context: int
    place: int = 0
    drafts: list[float] = field(default_factory=list)  # leads of what will be verified

    @property
    def live(self) -> Live:
        return Live(self.sequence_id, self.text.kind, self.context + self.place)

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
        live = [each.live for each in running]
        wanted, follows = policy.depths(live), policy.follows(live)
        patience = {each.sequence_id: policy.patience(each.sequence_id) for each in live}
        rows = [1 + len(each.drafts) for each in running]
        contexts = [each.context + each.place for each in running]
        outcomes, tokens = self._advance()
        going = [(each, depth) for each, depth in zip(running, wanted, strict=True) if not each.ended]
        leads = [each.text.places[each.place].leads[:depth] for each, depth in going]
        depths = made_together([patience[each.sequence_id] for each, _ in going], leads)
        read = sum(context * own for context, own in zip(contexts, rows, strict=True))
        shape = Shape(
            len(running), sum(rows), float(sum(contexts)), float(read),
            max(depths, default=0), sum(depths), sum(n for n, follow in zip(tokens, follows, strict=True) if follow),
        )  # fmt: skip
        self._settle(shape, outcomes, sum(tokens))
        for each in running:
            if each.ended:
                policy.forget(each.sequence_id)
        made = [
            Made(each.sequence_id, each.text.kind, own[:depth])
            for (each, _), own, depth in zip(going, leads, depths, strict=True) if depth
        ]  # fmt: skip
        context = float(sum(each.context + each.place for each, _ in going))
        counts = policy.keep(made, Shape(len(going), len(going), context, context)) if going else []
        kept = {each.sequence_id: each.leads[:count] for each, count in zip(made, counts, strict=True)}
        for each, _ in going:
            each.drafts = list(kept.get(each.sequence_id, []))
        self._running = [each for each, _ in going]
        self.score.made += sum(depths)

    def _advance(self) -> tuple[list[Outcome], list[int]]:
        outcomes, tokens = [], []
        for each in self._running:
            accepted = min(each.text.places[each.place].accepted, len(each.drafts))
            gained = min(accepted + 1, len(each.text.places) - each.place)
            each.place += gained
            outcomes.append(Outcome(each.sequence_id, len(each.drafts), min(accepted, gained), each.ended))
            tokens.append(gained)
        return outcomes, tokens

    def _settle(self, shape: Shape, outcomes: Sequence[Outcome], tokens: int) -> None:
        round_s, draft_s = self._machine.seconds(shape)
        noise = self._machine.noise(self._rng)
        self._policy.observe(outcomes, shape, tokens, round_s * noise, draft_s * self._machine.noise(self._rng))
        score = self.score
        score.tokens += tokens
        score.seconds += round_s + draft_s
        score.rounds += 1
        score.verified += shape.rows - shape.sequences
