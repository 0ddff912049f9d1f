"""How likely drafts are accepted: logistic models over all sequences, each joined with the sequence's own history.

*Judging* knows a draft's confidence and says which drafts to verify; *foreseeing* does not and says how many to make.
Labels come from the accepted drafts and the first rejected one. A new sequence is like the mean of all.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from operator import mul
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from outrider.workers.depth.regression import Logistic
from outrider.workers.types.sampling_params import LOOKUP
from outrider.workers.types.stop_rule import MAX_LEAD, MAX_LOG_ODDS, StopRule

Floats = NDArray[np.float64]

_MEMORY, _TRUST = 3000.0, 40.0  # labels of all sequences; recorded texts are judged best with 2,000 to 5,000
_OWN_MEMORY, _OWN_TRUST = 24.0, 4.0  # labels of one sequence; with 12 or 48 recorded texts are judged worse
_USUAL = 0.7  # acceptance of a sequence's first drafts: scout's mean at T=0.8
_BATCH = 24  # labels before the first Newton step, which takes 100 us; then twice as many, up to ten times
# First weights, fitted to scout by temperature class: intercept, lead, log(1 + lead), first draft, history
_JUDGING = ((-0.2, 0.9, 1.9, 0.1, 1.0), (-0.7, 0.6, 1.5, 0.0, 0.8), (-0.5, 1.0, 1.5, 0.0, 0.8))
# The same: intercept, first draft, log(position), history
_FORESEEING = ((2.7, 0.2, 0.2, 1.2), (1.0, 0.1, 0.1, 1.0), (1.0, 0.0, 0.0, 1.0))
_FEW = 4  # sequences, up to which lists are faster than arrays


def temperature_class(temperature: float) -> int:
    """0: greedy, 1: up to 1, 2: above. Confidence has another scale in each."""
    return 0 if temperature == 0.0 else 1 if temperature <= 1.0 else 2


class DraftKind(NamedTuple):
    """Drafts of one kind share their models."""

    drafter: str
    temperature_class: int

    def by(self, drafter: str) -> "DraftKind":
        """The same of another drafter."""
        return self if drafter == self.drafter else DraftKind(drafter, self.temperature_class)


class Made(NamedTuple):
    """A sequence's drafts for its next round."""

    sequence_id: int
    kind: DraftKind
    leads: Sequence[float]  # each score less the next best's; of a looked-up draft its chance to be accepted


class _History:
    """How a sequence's acceptance differs from that of all, in log-odds; recent drafts count more."""

    __slots__ = ("_accepted", "_expected", "_judged", "offset")

    def __init__(self) -> None:
        self._accepted = self._expected = self._judged = 0.0
        self.offset = 0.0

    def observe(self, accepted: float, judged: int, expected: float) -> None:
        """Of `judged` drafts `accepted` were, where `expected` would have been in the mean of all sequences."""
        keep = max(1.0 - judged / _OWN_MEMORY, 0.5)
        self._accepted = self._accepted * keep + accepted
        self._expected = self._expected * keep + expected
        self._judged = self._judged * keep + judged
        whole = self._judged + _OWN_TRUST
        own, usual = self._accepted + _USUAL * _OWN_TRUST, self._expected + _USUAL * _OWN_TRUST
        self.offset = math.log(own * (whole - usual) / ((whole - own) * usual))


@dataclass(slots=True)
class _Histories:
    """Of one live sequence with one drafter."""

    judging: _History = field(default_factory=_History)
    foreseeing: _History = field(default_factory=_History)


class _Example(NamedTuple):
    """The judged drafts of one round of a sequence."""

    leads: Sequence[float]
    accepted: int
    judging: float  # offsets of the sequence's histories then
    foreseeing: float


class _Models:
    """The two models of one kind. Odds are against acceptance, history aside."""

    def __init__(self, temperature_class: int, positions: int) -> None:
        self.judging = Logistic(_JUDGING[temperature_class], trust=_TRUST, memory=_MEMORY)
        self.foreseeing = Logistic(_FORESEEING[temperature_class], trust=_TRUST, memory=_MEMORY)
        self._positions = positions
        self._examples: list[_Example] = []
        self._labels, self._batch = 0, _BATCH
        self._foresee()

    def odds(self, leads: Sequence[float]) -> list[float]:
        """Of drafts with these leads."""
        fixed, slope, bend, first, _ = self.judging.weights
        capped = [min(lead, MAX_LEAD) for lead in leads]
        against = [-fixed - slope * lead - bend * math.log1p(lead) for lead in capped]
        against[0] -= first
        return [math.exp(min(score, MAX_LOG_ODDS)) for score in against]

    def expected(self, leads: Sequence[float]) -> float:
        """How many of judged drafts with these leads are accepted."""
        return sum([1.0 / (1.0 + odds) for odds in self.odds(leads)])

    def learn(self, example: _Example) -> None:
        self._examples.append(example)
        self._labels += len(example.leads)
        if self._labels >= self._batch:
            self._take_in(self._examples)
            self._examples, self._labels = [], 0
            self._batch = min(self._batch + _BATCH, 10 * _BATCH)
            self._foresee()

    def _take_in(self, examples: Sequence[_Example]) -> None:
        judged = [len(example.leads) for example in examples]
        capped = np.minimum([lead for example in examples for lead in example.leads], MAX_LEAD)  # [labels]
        position = np.array([n for count in judged for n in range(count)])  # [labels]
        labels = (position < np.repeat([example.accepted for example in examples], judged)).astype(float)
        judging = np.repeat([example.judging for example in examples], judged)
        foreseeing = np.repeat([example.foreseeing for example in examples], judged)
        ones, first = np.ones(len(position)), (position == 0).astype(float)
        self.judging.learn(np.stack([ones, capped, np.log1p(capped), first, judging], axis=1), labels)
        self.foreseeing.learn(np.stack([ones, first, np.log1p(position), foreseeing], axis=1), labels)

    def _foresee(self) -> None:
        fixed, first, slope, _ = self.foreseeing.weights
        scores = [fixed + first * (n == 0) + slope * math.log1p(n) for n in range(self._positions)]
        self.foreseen = [math.exp(min(-score, MAX_LOG_ODDS)) for score in scores]  # odds by position
        self.expected_of = [0.0, *accumulate(1.0 / (1.0 + odds) for odds in self.foreseen)]  # accepted, of so many


class Acceptance:
    """Every kind's models and every live sequence's histories."""

    def __init__(self, positions: int) -> None:
        """`positions`: most drafts of a sequence in one round."""
        self._positions = positions
        self._models: dict[DraftKind, _Models] = {}
        self._known = defaultdict[str, defaultdict[int, _Histories]](
            lambda: defaultdict(_Histories)
        )  # by drafter and sequence

    def __len__(self) -> int:
        """Sequences that it keeps something of."""
        return len(set().union(*self._known.values()))

    def judged(self, made: Sequence[Made]) -> Floats:
        """The chance of each draft that it and all before it are accepted, sequence by sequence, [drafts]."""
        kinds = [each.kind for each in made]
        if len(made) <= _FEW or kinds.count(kinds[0]) < len(kinds) or kinds[0].drafter == LOOKUP:
            return np.array([chance for each in made for chance in self.judged_alone(each)])
        return self._judged_together(made, kinds[0])

    def judged_alone(self, made: Made) -> list[float]:
        """`judged` of one sequence."""
        if made.kind.drafter == LOOKUP:
            return list(accumulate(made.leads, mul))
        models, history = self._of(made.kind), self._known[made.kind.drafter][made.sequence_id].judging
        return _survivals(models.odds(made.leads), models.judging.weights[4] * history.offset)

    def _judged_together(self, made: Sequence[Made], kind: DraftKind) -> Floats:
        """Of one kind: the same in a third of the time."""
        fixed, slope, bend, first, history = self._of(kind).judging.weights
        known, lengths = self._known[kind.drafter], [len(each.leads) for each in made]
        leads = np.fromiter(chain.from_iterable([each.leads for each in made]), np.float64, sum(lengths))
        capped = np.minimum(leads, MAX_LEAD)
        there = np.arange(max(lengths)) < np.array(lengths)[:, None]  # [sequences, most drafts]
        scores = np.full(there.shape, -np.inf)
        scores[there] = np.maximum(fixed + slope * capped + bend * np.log1p(capped), -MAX_LOG_ODDS)
        scores += history * np.array([known[each.sequence_id].judging.offset for each in made])[:, None]
        scores[:, 0] += first
        survivals: Floats = (1.0 / np.multiply.accumulate(1.0 + np.exp(-scores), axis=1))[there]
        return survivals

    def foreseen(self, sequences: Sequence[tuple[int, DraftKind]]) -> Floats:
        """The same of drafts that are not made yet, [sequences, positions]."""
        if len(sequences) <= _FEW:
            return np.array([self.foreseen_alone(sequence_id, kind) for sequence_id, kind in sequences])
        models = [self._of(kind) for _, kind in sequences]
        trust = np.array([each.foreseeing.weights[3] for each in models])
        offsets = np.array([self._known[kind.drafter][each].foreseeing.offset for each, kind in sequences])
        odds = np.array([each.foreseen for each in models]) * np.exp(-trust * offsets)[:, None]
        survivals: Floats = 1.0 / np.multiply.accumulate(1.0 + odds, axis=1)
        return survivals

    def foreseen_alone(self, sequence_id: int, kind: DraftKind) -> list[float]:
        """`foreseen` of one sequence."""
        models, history = self._of(kind), self._known[kind.drafter][sequence_id].foreseeing
        return _survivals(models.foreseen, models.foreseeing.weights[3] * history.offset)

    def stop_rule(self, sequence_id: int, kind: DraftKind, each: float, step: float) -> StopRule:
        """To draft on while another draft should bring the tokens of `each`, and a step those of `step` on top."""
        models, histories = self._of(kind), self._known[kind.drafter][sequence_id]
        fixed, lead, bend, first, own = models.judging.weights
        odds = min(models.foreseen[:2]) * math.exp(-models.foreseeing.weights[3] * histories.foreseeing.offset)
        return StopRule(fixed + own * histories.judging.offset, lead, bend, first, 1.0 / (1.0 + odds), each, step)

    def passed_over(self, made: Made) -> None:
        """Its drafts were judged and not worth verifying: foreseeing learns from the judgement."""
        models, history = self._of(made.kind), self._known[made.kind.drafter][made.sequence_id].foreseeing
        history.observe(models.expected(made.leads[:1]), 1, models.expected_of[1])

    def observe(self, made: Made, judged: int, accepted: int, *, usual: bool) -> None:
        """Learns from drafts of which the first `judged` got an answer: those accepted and the first rejected one.

        `usual`: what became of them tells of other sequences too, as it does not where the drafter's cache has a gap.
        """
        models, histories = self._of(made.kind), self._known[made.kind.drafter][made.sequence_id]
        judging, foreseeing, leads = histories.judging, histories.foreseeing, made.leads[:judged]
        expected = models.expected(leads)
        if usual:
            models.learn(_Example(leads, accepted, judging.offset, foreseeing.offset))
        judging.observe(accepted, judged, expected)
        foreseeing.observe(accepted, judged, models.expected_of[judged])

    def forget(self, sequence_id: int) -> None:
        for known in self._known.values():
            known.pop(sequence_id, None)

    def _of(self, kind: DraftKind) -> _Models:
        if kind not in self._models:
            self._models[kind] = _Models(kind.temperature_class, self._positions)
        return self._models[kind]


def _survivals(odds: Sequence[float], shift: float) -> list[float]:
    """Of each draft and all before it, given the odds against each and a shift of all log-odds."""
    reached, factor, survivals = 1.0, math.exp(-shift), []
    for each in odds:
        reached /= 1.0 + each * factor
        survivals.append(reached)
    return survivals
