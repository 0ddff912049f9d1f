"""How likely drafts are accepted: two logistic models of the fleet, each joined with the sequence's own history.

*Judging* knows a draft's confidence, *foreseeing* does not: the one says which drafts to verify, the other how many to
make. Labels come from the accepted prefix and the first rejection alone. A new sequence is the fleet's mean.
Knows nothing of time.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from operator import mul
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from outrider.workers.speculation.logistic import Logistic
from outrider.workers.speculation.patience import HOPELESS, MOST_LEAD, Patience
from outrider.workers.types.sampling_params import LOOKUP

Floats = NDArray[np.float64]

_FLEET_MEMORY, _FLEET_TRUST = 3000.0, 40.0  # labels
_SEQUENCE_MEMORY, _SEQUENCE_TRUST = 24.0, 4.0  # labels
_USUAL = 0.7  # acceptance that damping pulls both sides towards
_FIRST_BATCH, _LARGEST_BATCH = 24, 240  # labels between two steps: a step takes as long for many as for few
# Weights at first, scout's own: intercept, lead, log(1 + lead), first draft, history
_JUDGING = ((-0.2, 0.9, 1.9, 0.1, 1.0), (-0.7, 0.6, 1.5, 0.0, 0.8), (-0.5, 1.0, 1.5, 0.0, 0.8))
# Intercept, first draft, log(position), history
_FORESEEING = ((2.7, 0.2, 0.2, 1.2), (1.0, 0.1, 0.1, 1.0), (1.0, 0.0, 0.0, 1.0))


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
    leads: Sequence[float]  # how far the score of each is ahead of the next best's; of what was looked up: its chance


class History:
    """What became of a sequence's drafts beside what the fleet's would have come to, fading; damped while it is new."""

    __slots__ = ("_accepted", "_expected", "_judged", "offset")

    def __init__(self) -> None:
        self._accepted = self._expected = self._judged = 0.0
        self.offset = 0.0  # log-odds beside the fleet's

    def observe(self, accepted: float, judged: int, expected: float) -> None:
        """Of `judged` drafts `accepted` stood, where the fleet's would have been `expected`."""
        keep = max(1.0 - judged / _SEQUENCE_MEMORY, 0.5)
        self._accepted = self._accepted * keep + accepted
        self._expected = self._expected * keep + expected
        self._judged = self._judged * keep + judged
        whole = self._judged + _SEQUENCE_TRUST
        own, usual = self._accepted + _USUAL * _SEQUENCE_TRUST, self._expected + _USUAL * _SEQUENCE_TRUST
        self.offset = math.log(own * (whole - usual) / ((whole - own) * usual))


class _Lesson(NamedTuple):
    """What became of the judged drafts of one round of a sequence."""

    leads: Sequence[float]
    accepted: int
    judging: float  # offsets of the sequence's histories then
    foreseeing: float


class _Fleet:
    """The two models of one kind, over all sequences. Odds are against acceptance, history aside."""

    def __init__(self, heat: int, positions: int) -> None:
        def logistic(weights: Sequence[float]) -> Logistic:
            return Logistic(weights, trust=_FLEET_TRUST, memory=_FLEET_MEMORY)

        self.judging, self.foreseeing = logistic(_JUDGING[heat]), logistic(_FORESEEING[heat])
        self._positions = positions
        self._lessons: list[_Lesson] = []
        self._labels, self._batch = 0, _FIRST_BATCH
        self._foresee()

    def odds(self, leads: Sequence[float]) -> list[float]:
        """Of drafts with these leads."""
        fixed, slope, bend, first, _ = self.judging.weights
        capped = [min(lead, MOST_LEAD) for lead in leads]
        against = [-fixed - slope * lead - bend * math.log1p(lead) for lead in capped]
        against[0] -= first
        return [math.exp(min(score, HOPELESS)) for score in against]

    def expects(self, leads: Sequence[float]) -> float:
        """How many of drafts with these leads stand, of those that are judged."""
        return sum([1.0 / (1.0 + odds) for odds in self.odds(leads)])

    def learn(self, lesson: _Lesson) -> None:
        self._lessons.append(lesson)
        self._labels += len(lesson.leads)
        if self._labels >= self._batch:
            self._take_in(self._lessons)
            self._lessons, self._labels = [], 0
            self._batch = min(self._batch + _FIRST_BATCH, _LARGEST_BATCH)
            self._foresee()

    def _take_in(self, lessons: Sequence[_Lesson]) -> None:
        judged = [len(lesson.leads) for lesson in lessons]
        capped = np.minimum([lead for lesson in lessons for lead in lesson.leads], MOST_LEAD)  # [labels]
        place = np.array([n for count in judged for n in range(count)])  # [labels]
        labels = (place < np.repeat([lesson.accepted for lesson in lessons], judged)).astype(float)
        judging = np.repeat([lesson.judging for lesson in lessons], judged)
        foreseeing = np.repeat([lesson.foreseeing for lesson in lessons], judged)
        ones, first = np.ones(len(place)), (place == 0).astype(float)
        self.judging.learn(np.stack([ones, capped, np.log1p(capped), first, judging], axis=1), labels)
        self.foreseeing.learn(np.stack([ones, first, np.log1p(place), foreseeing], axis=1), labels)

    def _foresee(self) -> None:
        fixed, first, slope, _ = self.foreseeing.weights
        scores = [fixed + first * (n == 0) + slope * math.log1p(n) for n in range(self._positions)]
        self.foreseen = [
            math.exp(min(-score, HOPELESS)) for score in scores
        ]  # odds by position, before the drafts are made
        self.expected = [0.0, *accumulate(1.0 / (1.0 + odds) for odds in self.foreseen)]  # accepted, of so many judged


@dataclass(slots=True)
class _Histories:
    """Of one live sequence with one drafter."""

    judging: History = field(default_factory=History)
    foreseeing: History = field(default_factory=History)


class Acceptance:
    """Every kind's models and every live sequence's history."""

    def __init__(self, positions: int) -> None:
        """`positions`: most drafts of a sequence in one round."""
        self._positions = positions
        self._fleets: dict[Kind, _Fleet] = {}
        self._known = defaultdict[str, defaultdict[int, _Histories]](
            lambda: defaultdict(_Histories)
        )  # by drafter and sequence
        self._pending: dict[int, Made] = {}  # by sequence: drafts whose verdict is not known yet

    def __len__(self) -> int:
        """Sequences that it keeps something of."""
        return len(set().union(*self._known.values()))

    def judged(self, made: Sequence[Made]) -> Floats:
        """The probability that a draft and all before it are accepted, [sequences, most drafts]; 0 beyond the last.

        Remembers the drafts, to learn from what becomes of them. What was looked up brings its chances along.
        """
        lengths = [len(each.leads) for each in made]
        leads = np.fromiter(chain.from_iterable([each.leads for each in made]), np.float64, sum(lengths))
        kinds = [each.kind for each in made]
        several = kinds.count(kinds[0]) < len(kinds)
        weights = np.array([self._fleet(kind).judging.weights for kind in (kinds if several else kinds[:1])])
        fixed, slope, bend, _, _ = np.repeat(weights, lengths, axis=0).T if several else weights.T  # [drafts or 1]
        capped = np.minimum(leads, MOST_LEAD)
        there = np.arange(max(lengths, default=0)) < np.array(lengths)[:, None]  # [sequences, most drafts]
        scores = np.full(there.shape, -np.inf)
        scores[there] = np.maximum(fixed + slope * capped + bend * np.log1p(capped), -HOPELESS)
        scores += (weights[:, 4] * self._offsets(made, several=several))[:, None]
        scores[:, :1] += weights[:, 3:4]
        survivals: Floats = 1.0 / np.multiply.accumulate(1.0 + np.exp(-scores), axis=1)
        self._pending.update(zip([each.sequence_id for each in made], made, strict=True))
        if several or kinds[0].drafter == LOOKUP:
            for place, each in enumerate(made):
                if each.kind.drafter == LOOKUP:
                    survivals[place, : len(each.leads)] = np.multiply.accumulate(each.leads)
                    del self._pending[each.sequence_id]
        return survivals

    def _offsets(self, made: Sequence[Made], *, several: bool) -> Floats:
        """Of the sequences' own histories with who drafted, [sequences]. `several`: kinds."""
        if several:
            return np.array([self._known[each.kind.drafter][each.sequence_id].judging.offset for each in made])
        known = self._known[made[0].kind.drafter]
        return np.array([known[each.sequence_id].judging.offset for each in made])

    def judged_alone(self, made: Made) -> list[float]:
        """`judged` of one sequence, which has drafts: the same in a tenth of the time."""
        if made.kind.drafter == LOOKUP:
            return list(accumulate(made.leads, mul))
        fleet, history = self._fleet(made.kind), self._known[made.kind.drafter][made.sequence_id].judging
        self._pending[made.sequence_id] = made
        return _survivals(fleet.odds(made.leads), fleet.judging.weights[4] * history.offset)

    def patience(self, sequence_id: int, kind: Kind, each: float, step: float) -> Patience:
        """To draft on while another draft should bring the tokens of `each`, and a step those of `step` on top.

        Of the first two positions the likelier says how another fares: where none are made of late, nothing is known.
        """
        fleet, histories = self._fleet(kind), self._known[kind.drafter][sequence_id]
        fixed, lead, bend, first, own = fleet.judging.weights
        odds = min(fleet.foreseen[:2]) * math.exp(-fleet.foreseeing.weights[3] * histories.foreseeing.offset)
        return Patience(fixed + own * histories.judging.offset, lead, bend, first, 1.0 / (1.0 + odds), each, step)

    def foreseen_alone(self, sequence_id: int, kind: Kind) -> list[float]:
        """`foreseen` of one sequence."""
        fleet, history = self._fleet(kind), self._known[kind.drafter][sequence_id].foreseeing
        return _survivals(fleet.foreseen, fleet.foreseeing.weights[3] * history.offset)

    def foreseen(self, sequences: Sequence[tuple[int, Kind]]) -> Floats:
        """The same of drafts that are not made yet, [sequences, positions]."""
        fleets = self._fleets_of([kind for _, kind in sequences])
        trust = np.array([fleet.foreseeing.weights[3] for fleet in fleets])
        offsets = np.array([self._known[kind.drafter][each].foreseeing.offset for each, kind in sequences])
        odds = np.array([fleet.foreseen for fleet in fleets]) * np.exp(-trust * offsets)[:, None]
        survivals: Floats = 1.0 / np.multiply.accumulate(1.0 + odds, axis=1)
        return survivals

    def take(self, sequence_ids: Iterable[int]) -> dict[int, Made]:
        """Of these sequences the drafts that were judged last, by sequence: from here on the caller's to remember."""
        pending = self._pending
        return {each: pending.pop(each) for each in sequence_ids if each in pending}

    def passed_over(self, sequence_id: int) -> None:
        """Its drafts were judged and not worth verifying: what to make of later ones learns from the judgement."""
        if (made := self._pending.get(sequence_id)) is not None:
            fleet, history = self._fleet(made.kind), self._known[made.kind.drafter][sequence_id].foreseeing
            history.observe(fleet.expects(made.leads[:1]), 1, fleet.expected[1])

    def observe(self, outcomes: Iterable[tuple[Made, int, int, bool]]) -> None:
        """Learns from what became of drafts (as taken, judged, accepted, usual).

        `judged` counts the accepted ones and the first rejected; what was made beyond was never judged. `usual`: what
        became of them says something of other sequences too, as it does not where the drafter missed a part of theirs.
        """
        for made, judged, accepted, usual in outcomes:
            if judged:
                self._learn(made, made.leads[:judged], accepted, usual=usual)

    def _learn(self, made: Made, leads: Sequence[float], accepted: int, *, usual: bool) -> None:
        fleet, histories = self._fleet(made.kind), self._known[made.kind.drafter][made.sequence_id]
        judging, foreseeing = histories.judging, histories.foreseeing
        expected = fleet.expects(leads)
        if usual:
            fleet.learn(_Lesson(leads, accepted, judging.offset, foreseeing.offset))
        judging.observe(accepted, len(leads), expected)
        foreseeing.observe(accepted, len(leads), fleet.expected[len(leads)])

    def forget(self, sequence_id: int) -> None:
        for known in self._known.values():
            known.pop(sequence_id, None)
        self._pending.pop(sequence_id, None)

    def _fleets_of(self, kinds: list[Kind]) -> list[_Fleet]:
        """Of each, or one for all where they are alike, as they nearly always are."""
        return [self._fleet(kind) for kind in (kinds[:1] if kinds.count(kinds[0]) == len(kinds) else kinds)]

    def _fleet(self, kind: Kind) -> _Fleet:
        if kind not in self._fleets:
            self._fleets[kind] = _Fleet(kind.heat, self._positions)
        return self._fleets[kind]


def _survivals(odds: Sequence[float], shift: float) -> list[float]:
    """Of each draft and all before it, given the odds against each and a shift of all log-odds."""
    reached, factor, survivals = 1.0, math.exp(-shift), []
    for each in odds:
        reached /= 1.0 + each * factor
        survivals.append(reached)
    return survivals
