"""How likely drafts are accepted: two logistic models of the fleet, each joined with the sequence's own history.

*Judging* knows a draft's confidence, *foreseeing* does not: the one says which drafts to verify, the other how many to
make. Labels come from the accepted prefix and the first rejection alone. A new sequence is the fleet's mean.
Knows nothing of time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from outrider.workers.speculation.logistic import Logistic, logit, sigmoid

Floats = NDArray[np.float64]

_MOST_LEAD = 12.0  # a lead beyond it says no more
_FLEET_MEMORY, _FLEET_TRUST = 3000.0, 40.0  # labels
_SEQUENCE_MEMORY, _SEQUENCE_TRUST = 24.0, 4.0  # labels
_USUAL = 0.7  # acceptance that damping pulls both sides towards
_MOST_TAUGHT = 16  # sequences of a round that the fleet learns from; every one learns its own history
# Weights at first, scout's own: intercept, lead, log(1 + lead), first draft, history
_JUDGING = ((-0.7, 0.5, 1.8, 0.2, 0.8), (-1.0, 0.3, 1.7, 0.1, 0.8), (-1.0, 0.3, 1.7, 0.1, 0.8))
# Intercept, first draft, log(position), history
_FORESEEING = ((2.0, 0.0, 0.0, 1.0), (0.9, 0.0, 0.0, 1.0), (0.0, 0.0, 0.0, 1.0))


class Kind(NamedTuple):
    """Drafts of one kind are judged alike: at other temperatures scores have another scale."""

    drafter: str
    heat: int  # 0: greedy, 1: up to a temperature of 1, 2: above

    @classmethod
    def of(cls, drafter: str, temperature: float) -> "Kind":
        return cls(drafter, 0 if temperature == 0.0 else 1 if temperature <= 1.0 else 2)

    def by(self, drafter: str) -> "Kind":
        """The same of another drafter."""
        return self if drafter == self.drafter else Kind(drafter, self.heat)


class Made(NamedTuple):
    """A sequence's drafts for its next round."""

    sequence_id: int
    kind: Kind
    leads: Sequence[float]  # how far the score of each is ahead of the next best's


class History:
    """What became of a sequence's drafts beside what the fleet's would have come to, fading; damped while it is new."""

    __slots__ = ("_accepted", "_expected", "_judged", "offset")

    def __init__(self) -> None:
        self._accepted = self._expected = self._judged = 0.0
        self.offset = 0.0  # log-odds beside the fleet's

    def observe(self, accepted: int, judged: int, expected: float) -> None:
        """Of `judged` drafts `accepted` stood, where the fleet's would have been `expected`."""
        keep = max(1.0 - judged / _SEQUENCE_MEMORY, 0.5)
        self._accepted = self._accepted * keep + accepted
        self._expected = self._expected * keep + expected
        self._judged = self._judged * keep + judged
        prior, whole = _USUAL * _SEQUENCE_TRUST, self._judged + _SEQUENCE_TRUST
        self.offset = logit((self._accepted + prior) / whole) - logit((self._expected + prior) / whole)


class _Fleet:
    """The two models of one kind, over all sequences."""

    def __init__(self, heat: int, positions: int) -> None:
        def logistic(weights: Sequence[float]) -> Logistic:
            return Logistic(weights, trust=_FLEET_TRUST, memory=_FLEET_MEMORY)

        self.judging, self.foreseeing = logistic(_JUDGING[heat]), logistic(_FORESEEING[heat])
        self._places = [(float(n == 0), math.log1p(n)) for n in range(positions)]
        self._foreseen: list[float] = []
        self._foreseen_by: list[float] = []  # the weights that it was computed with

    def foreseen(self) -> list[float]:
        """Log-odds by position, history aside, before the drafts are made."""
        if self._foreseen_by is not self.foreseeing.weights:
            self._foreseen_by = self.foreseeing.weights
            fixed, first, slope, _ = self._foreseen_by
            self._foreseen = [fixed + first * is_first + slope * depth for is_first, depth in self._places]
        return self._foreseen

    def scores(self, leads: Sequence[float]) -> list[float]:
        """Log-odds of drafts with these leads, history aside."""
        fixed, slope, bend, first, _ = self.judging.weights
        capped = [min(lead, _MOST_LEAD) for lead in leads]
        scores = [fixed + slope * lead + bend * math.log1p(lead) for lead in capped]
        scores[0] += first
        return scores

    def learn(self, leads: Sequence[float], accepted: int, histories: tuple[float, float]) -> None:
        """From judged drafts, the first `accepted` of which stood; `histories` as judging and foreseeing had them."""
        for n, lead in enumerate(leads[: accepted + 1]):
            capped, (is_first, depth) = min(lead, _MOST_LEAD), self._places[n]
            self.judging.observe((1.0, capped, math.log1p(capped), is_first, histories[0]), n < accepted)
            self.foreseeing.observe((1.0, is_first, depth, histories[1]), n < accepted)


@dataclass(slots=True)
class _Histories:
    """Of one live sequence with one drafter."""

    judging: History = field(default_factory=History)
    foreseeing: History = field(default_factory=History)


@dataclass(slots=True)
class _Known:
    """Of one live sequence."""

    histories: dict[str, _Histories] = field(default_factory=dict)  # by drafter
    made: Made | None = None  # and not judged yet
    expected: list[float] = field(default_factory=list)  # acceptance of each, history aside

    def of(self, drafter: str) -> _Histories:
        if drafter not in self.histories:
            self.histories[drafter] = _Histories()
        return self.histories[drafter]


class Acceptance:
    """Every kind's models and every live sequence's history."""

    def __init__(self, positions: int) -> None:
        """`positions`: most drafts of a sequence in one round."""
        self._positions = positions
        self._fleets: dict[Kind, _Fleet] = {}
        self._known: dict[int, _Known] = {}
        self._turn = 0

    def __len__(self) -> int:
        """Sequences that it keeps something of."""
        return len(self._known)

    def judged(self, made: Sequence[Made]) -> Floats:
        """The probability that a draft and all before it are accepted, [sequences, most drafts]; 0 beyond the last.

        Remembers the drafts, to learn from what becomes of them.
        """
        known = [self._of(each.sequence_id) for each in made]
        most = max((len(each.leads) for each in made), default=0)
        leads = np.array([[*each.leads, *[0.0] * (most - len(each.leads))] for each in made])
        capped = np.minimum(leads, _MOST_LEAD)
        weights = np.array([self._fleet(each.kind).judging.weights for each in made])  # [sequences, 5]
        scores = weights[:, :1] + weights[:, 1:2] * capped + weights[:, 2:3] * np.log1p(capped)
        scores[:, :1] += weights[:, 3:4]
        for own, each, expected in zip(known, made, sigmoid(scores).tolist(), strict=True):
            own.made, own.expected = each, expected
        offsets = [[own.of(each.kind.drafter).judging.offset] for own, each in zip(known, made, strict=True)]
        scores += weights[:, 4:] * np.array(offsets)
        survivals: Floats = np.multiply.accumulate(sigmoid(scores), axis=1)
        lengths = [len(each.leads) for each in made]
        if min(lengths, default=0) < most:
            survivals[np.arange(most) >= np.array(lengths)[:, None]] = 0.0
        return survivals

    def judged_alone(self, made: Made) -> list[float]:
        """`judged` of one sequence, which has drafts: the same in a tenth of the time."""
        own, fleet = self._of(made.sequence_id), self._fleet(made.kind)
        scores = fleet.scores(made.leads)
        own.made, own.expected = made, [_sigmoid(score) for score in scores]
        return _survivals(scores, fleet.judging.weights[4] * own.of(made.kind.drafter).judging.offset)

    def foreseen_alone(self, sequence_id: int, kind: Kind) -> list[float]:
        """`foreseen` of one sequence."""
        fleet, own = self._fleet(kind), self._of(sequence_id).of(kind.drafter)
        return _survivals(fleet.foreseen(), fleet.foreseeing.weights[3] * own.foreseeing.offset)

    def foreseen(self, sequences: Sequence[tuple[int, Kind]]) -> Floats:
        """The same of drafts that are not made yet, [sequences, positions]."""
        fleets = [self._fleet(kind) for _, kind in sequences]
        shifts = [
            fleet.foreseeing.weights[3] * self._of(sequence_id).of(kind.drafter).foreseeing.offset
            for (sequence_id, kind), fleet in zip(sequences, fleets, strict=True)
        ]
        scores = np.array([fleet.foreseen() for fleet in fleets]) + np.array(shifts)[:, None]
        survivals: Floats = np.multiply.accumulate(sigmoid(scores), axis=1)
        return survivals

    def observe(self, outcomes: Sequence[tuple[int, int, int]]) -> None:
        """Learns from one round: of each sequence's drafts (id, judged, accepted). Unknown drafts are passed over.

        `judged` counts the accepted ones and the first rejected; what was made beyond was never judged.
        """
        stride = len(outcomes) // _MOST_TAUGHT + 1
        self._turn += 1
        for number, (sequence_id, judged, accepted) in enumerate(outcomes):
            own = self._known.get(sequence_id)
            if own is not None and own.made is not None and judged:
                self._learn(own, own.made, judged, accepted, teaches=(number + self._turn) % stride == 0)

    def _learn(self, own: _Known, made: Made, judged: int, accepted: int, *, teaches: bool) -> None:
        fleet, histories = self._fleet(made.kind), own.of(made.kind.drafter)
        if teaches:
            fleet.learn(made.leads[:judged], accepted, (histories.judging.offset, histories.foreseeing.offset))
        histories.judging.observe(accepted, judged, sum(own.expected[:judged]))
        foreseen = sum([_sigmoid(score) for score in fleet.foreseen()[:judged]])
        histories.foreseeing.observe(accepted, judged, foreseen)
        own.made = None

    def pending(self, sequence_id: int) -> Made | None:
        """The sequence's drafts that are not judged yet."""
        own = self._known.get(sequence_id)
        return own.made if own is not None else None

    def forget(self, sequence_id: int) -> None:
        self._known.pop(sequence_id, None)

    def _of(self, sequence_id: int) -> _Known:
        if sequence_id not in self._known:
            self._known[sequence_id] = _Known()
        return self._known[sequence_id]

    def _fleet(self, kind: Kind) -> _Fleet:
        if kind not in self._fleets:
            self._fleets[kind] = _Fleet(kind.heat, self._positions)
        return self._fleets[kind]


def _sigmoid(score: float) -> float:
    return 1.0 / (1.0 + math.exp(-score)) if score > -30.0 else 0.0


def _survivals(scores: Sequence[float], shift: float) -> list[float]:
    reached, survivals = 1.0, []
    for score in scores:
        reached *= _sigmoid(score + shift)
        survivals.append(reached)
    return survivals
