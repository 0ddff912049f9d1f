"""Estimates the probability that drafts are accepted: logistic models plus an offset for each sequence's history.

The *evaluation* model uses a draft's confidence and decides which drafts to verify. The *prediction* model does not
know it and decides how many drafts to make. *Judged* drafts are the accepted ones and the first rejected one; only they
are labels. A new sequence starts at the mean of all.
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
from outrider.workers.types.requests.sampling_params import LOOKUP
from outrider.workers.types.rounds.stop_rule import MAX_LEAD, MAX_LOG_ODDS, StopRule

Floats = NDArray[np.float64]

_MEMORY, _TRUST = 3000.0, 40.0  # labels of all sequences; recorded texts are predicted best with 2,000 to 5,000
_OWN_MEMORY, _OWN_TRUST = 24.0, 4.0  # labels of one sequence; 12 and 48 predict recorded texts worse
_USUAL = 0.7  # acceptance of a sequence's first drafts: scout's mean at T=0.8
_BATCH = 24  # labels before the first Newton step (100 us); each later batch is _BATCH larger, up to 10 * _BATCH
# Initial weights, fitted to scout, by temperature class: intercept, lead, log(1 + lead), first draft, history
_EVALUATION = ((-0.2, 0.9, 1.9, 0.1, 1.0), (-0.7, 0.6, 1.5, 0.0, 0.8), (-0.5, 1.0, 1.5, 0.0, 0.8))
# The same: intercept, first draft, log(position), history
_PREDICTION = ((2.7, 0.2, 0.2, 1.2), (1.0, 0.1, 0.1, 1.0), (1.0, 0.0, 0.0, 1.0))
_FEW = 4  # up to so many sequences, lists are faster than arrays


def temperature_class(temperature: float) -> int:
    """0: greedy, 1: up to 1, 2: above 1. The scale of confidences differs between classes."""
    return 0 if temperature == 0.0 else 1 if temperature <= 1.0 else 2


class DraftKind(NamedTuple):
    """Drafts of one kind share the models of this module."""

    drafter: str
    temperature_class: int

    def by(self, drafter: str) -> "DraftKind":
        """The same temperature class with another drafter."""
        return self if drafter == self.drafter else DraftKind(drafter, self.temperature_class)


class MadeDrafts(NamedTuple):
    """A sequence's drafts for its next round."""

    sequence_id: int
    kind: DraftKind
    leads: Sequence[float]  # score minus the next best; for prompt lookup, the probability of acceptance


class _History:
    """A sequence's acceptance relative to the mean of all, in log-odds. Recent drafts count more."""

    __slots__ = ("_accepted", "_expected", "_judged", "offset")

    def __init__(self) -> None:
        self._accepted = self._expected = self._judged = 0.0
        self.offset = 0.0

    def observe(self, accepted: float, judged: int, expected: float) -> None:
        """Adds `judged` drafts: `accepted` were accepted, and the model for all sequences expected `expected`."""
        keep = max(1.0 - judged / _OWN_MEMORY, 0.5)
        self._accepted = self._accepted * keep + accepted
        self._expected = self._expected * keep + expected
        self._judged = self._judged * keep + judged
        whole = self._judged + _OWN_TRUST
        own, usual = self._accepted + _USUAL * _OWN_TRUST, self._expected + _USUAL * _OWN_TRUST
        self.offset = math.log(own * (whole - usual) / ((whole - own) * usual))


@dataclass(slots=True)
class _Histories:
    """The histories of one live sequence with one drafter."""

    evaluation: _History = field(default_factory=_History)
    prediction: _History = field(default_factory=_History)


class _Example(NamedTuple):
    """The judged drafts of one round of a sequence."""

    leads: Sequence[float]
    accepted: int
    evaluation: float  # the histories' offsets before this round
    prediction: float


class _Models:
    """The two models of one kind. `odds` are odds against acceptance, without the sequence's history."""

    def __init__(self, temperature_class: int, positions: int) -> None:
        self.evaluation = Logistic(_EVALUATION[temperature_class], trust=_TRUST, memory=_MEMORY)
        self.prediction = Logistic(_PREDICTION[temperature_class], trust=_TRUST, memory=_MEMORY)
        self._positions = positions
        self._examples: list[_Example] = []
        self._labels, self._batch = 0, _BATCH
        self._predict()

    def odds(self, leads: Sequence[float]) -> list[float]:
        """Odds against acceptance of drafts with these leads."""
        fixed, slope, bend, first, _ = self.evaluation.weights
        capped = [min(lead, MAX_LEAD) for lead in leads]
        against = [-fixed - slope * lead - bend * math.log1p(lead) for lead in capped]
        against[0] -= first
        return [math.exp(min(score, MAX_LOG_ODDS)) for score in against]

    def expected(self, leads: Sequence[float]) -> float:
        """Expected number of accepted drafts among verified ones with these leads."""
        return sum([1.0 / (1.0 + odds) for odds in self.odds(leads)])

    def learn(self, example: _Example) -> None:
        self._examples.append(example)
        self._labels += len(example.leads)
        if self._labels >= self._batch:
            self._fit(self._examples)
            self._examples, self._labels = [], 0
            self._batch = min(self._batch + _BATCH, 10 * _BATCH)
            self._predict()

    def _fit(self, examples: Sequence[_Example]) -> None:
        judged = [len(example.leads) for example in examples]
        capped = np.minimum([lead for example in examples for lead in example.leads], MAX_LEAD)  # [labels]
        position = np.array([n for count in judged for n in range(count)])  # [labels]
        labels = (position < np.repeat([example.accepted for example in examples], judged)).astype(float)
        evaluation = np.repeat([example.evaluation for example in examples], judged)
        prediction = np.repeat([example.prediction for example in examples], judged)
        ones, first = np.ones(len(position)), (position == 0).astype(float)
        self.evaluation.learn(np.stack([ones, capped, np.log1p(capped), first, evaluation], axis=1), labels)
        self.prediction.learn(np.stack([ones, first, np.log1p(position), prediction], axis=1), labels)

    def _predict(self) -> None:
        fixed, first, slope, _ = self.prediction.weights
        scores = [fixed + first * (n == 0) + slope * math.log1p(n) for n in range(self._positions)]
        self.predicted = [math.exp(min(-score, MAX_LOG_ODDS)) for score in scores]  # odds by position
        # accepted drafts, by number of judged ones
        self.expected_of = [0.0, *accumulate(1.0 / (1.0 + odds) for odds in self.predicted)]


class Acceptance:
    """The models of each kind and the histories of each live sequence."""

    def __init__(self, positions: int) -> None:
        """`positions`: most drafts of a sequence in one round."""
        self._positions = positions
        self._models: dict[DraftKind, _Models] = {}
        self._known = defaultdict[str, defaultdict[int, _Histories]](
            lambda: defaultdict(_Histories)
        )  # by drafter and sequence

    def __len__(self) -> int:
        """Number of sequences with a history."""
        return len(set().union(*self._known.values()))

    def evaluate(self, made: Sequence[MadeDrafts]) -> Floats:
        """Probability that each draft and all before it are accepted, sequence by sequence, [drafts]."""
        kinds = [each.kind for each in made]
        if len(made) <= _FEW or kinds.count(kinds[0]) < len(kinds) or kinds[0].drafter == LOOKUP:
            return np.array([chance for each in made for chance in self.evaluate_one(each)])
        return self._evaluate_batch(made, kinds[0])

    def evaluate_one(self, made: MadeDrafts) -> list[float]:
        """`evaluate` for one sequence."""
        if made.kind.drafter == LOOKUP:
            return list(accumulate(made.leads, mul))
        models, history = self._of(made.kind), self._known[made.kind.drafter][made.sequence_id].evaluation
        return _survivals(models.odds(made.leads), models.evaluation.weights[4] * history.offset)

    def _evaluate_batch(self, made: Sequence[MadeDrafts], kind: DraftKind) -> Floats:
        """`evaluate` for drafts of one kind, in a third of the time."""
        fixed, slope, bend, first, history = self._of(kind).evaluation.weights
        known, lengths = self._known[kind.drafter], [len(each.leads) for each in made]
        leads = np.fromiter(chain.from_iterable([each.leads for each in made]), np.float64, sum(lengths))
        capped = np.minimum(leads, MAX_LEAD)
        there = np.arange(max(lengths)) < np.array(lengths)[:, None]  # [sequences, most drafts]
        scores = np.full(there.shape, -np.inf)
        scores[there] = np.maximum(fixed + slope * capped + bend * np.log1p(capped), -MAX_LOG_ODDS)
        scores += history * np.array([known[each.sequence_id].evaluation.offset for each in made])[:, None]
        scores[:, 0] += first
        survivals: Floats = (1.0 / np.multiply.accumulate(1.0 + np.exp(-scores), axis=1))[there]
        return survivals

    def predict(self, sequences: Sequence[tuple[int, DraftKind]]) -> Floats:
        """The same probabilities for drafts that are not made yet, [sequences, positions]."""
        if len(sequences) <= _FEW:
            return np.array([self.predict_one(sequence_id, kind) for sequence_id, kind in sequences])
        models = [self._of(kind) for _, kind in sequences]
        trust = np.array([each.prediction.weights[3] for each in models])
        offsets = np.array([self._known[kind.drafter][each].prediction.offset for each, kind in sequences])
        odds = np.array([each.predicted for each in models]) * np.exp(-trust * offsets)[:, None]
        survivals: Floats = 1.0 / np.multiply.accumulate(1.0 + odds, axis=1)
        return survivals

    def predict_one(self, sequence_id: int, kind: DraftKind) -> list[float]:
        """`predict` for one sequence."""
        models, history = self._of(kind), self._known[kind.drafter][sequence_id].prediction
        return _survivals(models.predicted, models.prediction.weights[3] * history.offset)

    def stop_rule(self, sequence_id: int, kind: DraftKind, each: float, step: float) -> StopRule:
        """Drafting continues while another draft's expected tokens exceed `each` (per draft) plus `step` (per step)."""
        models, histories = self._of(kind), self._known[kind.drafter][sequence_id]
        fixed, lead, bend, first, own = models.evaluation.weights
        odds = min(models.predicted[:2]) * math.exp(-models.prediction.weights[3] * histories.prediction.offset)
        return StopRule(fixed + own * histories.evaluation.offset, lead, bend, first, 1.0 / (1.0 + odds), each, step)

    def observe_unverified(self, made: MadeDrafts) -> None:
        """These drafts will not be verified: the prediction model learns from the evaluation model's estimate."""
        models, history = self._of(made.kind), self._known[made.kind.drafter][made.sequence_id].prediction
        history.observe(models.expected(made.leads[:1]), 1, models.expected_of[1])

    def observe(self, made: MadeDrafts, judged: int, accepted: int, *, usual: bool) -> None:
        """Learns from the first `judged` drafts, of which `accepted` were accepted.

        `usual`: False if the drafter's cache has a gap; then only the sequence's own history learns.
        """
        models, histories = self._of(made.kind), self._known[made.kind.drafter][made.sequence_id]
        evaluation, prediction, leads = histories.evaluation, histories.prediction, made.leads[:judged]
        expected = models.expected(leads)
        if usual:
            models.learn(_Example(leads, accepted, evaluation.offset, prediction.offset))
        evaluation.observe(accepted, judged, expected)
        prediction.observe(accepted, judged, models.expected_of[judged])

    def forget(self, sequence_id: int) -> None:
        for known in self._known.values():
            known.pop(sequence_id, None)

    def _of(self, kind: DraftKind) -> _Models:
        if kind not in self._models:
            self._models[kind] = _Models(kind.temperature_class, self._positions)
        return self._models[kind]


def _survivals(odds: Sequence[float], shift: float) -> list[float]:
    """Probability that each draft and all before it are accepted. `shift` is added to all log-odds of acceptance."""
    reached, factor, survivals = 1.0, math.exp(-shift), []
    for each in odds:
        reached /= 1.0 + each * factor
        survivals.append(reached)
    return survivals
