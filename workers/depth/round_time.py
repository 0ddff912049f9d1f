"""Estimates the time of a round from its shape; learns online from measured rounds. Reads no clock.

There are two linear models, one for the forward pass and sampling, one for drafting. Each is multiplied by the present
speed of the machine or drafter. Each number of rows also has a correction, because kernels pad and split in steps.
Gains and losses are relative to plain rounds (without speculation), so these are measured separately.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from outrider.workers.depth.regression import LeastSquares

Floats = NDArray[np.float64]

# Initial coefficients, from scout on two cores: fixed, row, expert, sequence, context, rows x context, sampled row
_FORWARD = (1.0, 0.12, 0.12, 0.03, 0.02, 0.05, 0.05)
# The same for drafting: fixed part of following, followed token; fixed part of drafting, step, draft, sampled draft
_FOLLOWING, _DRAFTING = (0.03, 0.02), (0.1, 0.08, 0.01, 0.01)
_PER = 1e-3  # contexts are in thousands of tokens, so that coefficients have the same order of magnitude
_MEMORY = 400.0  # rounds; recorded rounds are forecast best with 200 to 800 (recordings/scout-rounds.npz)
_SPEED_RATE = 0.15  # weight of a round in the machine's speed, which drifts within tens of rounds
_DRAFTER_RATE = 0.1  # weight of a round in a drafter's speed: a tenfold slowdown is learned within 100 rounds
_SPEED_HELD = 0.995  # exponent applied at each update: otherwise speed drifts to 0.7 in 500 equal rounds (simulation)
_ROUNDS_LEARNED = 4.0  # one in so many rounds is learned from (policy.py)
_OUTLIER = 1.5  # observed / forecast times are clipped to this factor; 1 in 100 recorded rounds exceeds it
_ROWS_MEMORY = 24.0  # rounds that the correction of a number of rows remembers
_FEW = 6.0  # rounds after which a number of rows counts as known; half of it is the weight of no correction
_PLAIN_DOUBT = 1.0  # weight of the model's own forecast of plain rounds, in measurements
_PLAIN_MEMORY = 8.0  # measurements that the correction of plain rounds remembers
_UNSEEN_ROWS = 0.5  # share of the modelled cost of rows beyond any seen: one round is enough to correct optimism


class Shape(NamedTuple):
    """The properties of a round that its time depends on."""

    sequences: int
    rows: int
    context: float  # tokens, summed over the sequences
    rows_context: float  # tokens, summed over the rows
    sampled: int = 0  # rows drawn at a temperature above 0
    steps: int = 0  # draft steps after the round
    drafts: int = 0  # drafts made after the round
    sampled_drafts: int = 0  # those drawn at a temperature above 0
    followed: int = 0  # tokens that the drafter followed after the round
    drafter: str = "mtp"

    @classmethod
    def plain(cls, sequences: int, context: float, sampled: int = 0) -> "Shape":
        """A decoding round without speculation."""
        return cls(sequences, sequences, context, context, sampled)

    @property
    def following(self) -> tuple[float, ...]:
        """Features of the time for following tokens."""
        return float(self.followed > 0), self.followed

    @property
    def drafting(self) -> tuple[float, ...]:
        """Features of the time for making drafts."""
        return float(self.steps > 0), self.steps, self.drafts, self.sampled_drafts


@dataclass(slots=True)
class _Correction:
    """Measured over modelled time, for one number of rows or for plain rounds of one size class."""

    doubt: float = _FEW / 2  # weight of the model (no correction), in rounds
    memory: float = _ROWS_MEMORY
    ratio: float = 1.0
    seen: float = 0.0

    def observe(self, ratio: float) -> None:
        self.seen = min(self.seen, self.memory) + 1.0
        self.ratio += (ratio - self.ratio) / self.seen

    @property
    def factor(self) -> float:
        return 1.0 + (self.ratio - 1.0) * self.seen / (self.seen + self.doubt)


@dataclass(slots=True)
class _Drafter:
    """The linear models of one drafter's time, and its present speed."""

    following: LeastSquares
    drafting: LeastSquares
    speed: float

    @property
    def coefficients(self) -> list[float]:
        return [self.speed * each for each in (*self.following.coefficients, *self.drafting.coefficients)]

    def observe(self, shape: Shape, seconds: float) -> None:
        following_s = self.speed * self.following.value(shape.following)
        if not shape.drafts:
            self.following.observe(shape.following, seconds / self.speed)
            return
        seconds = max(seconds - following_s, seconds / 2)
        if self.drafting.seen >= _FEW:
            forecast_s = self.speed * self.drafting.value(shape.drafting)
            self.speed = _followed(self.speed, _DRAFTER_RATE, seconds / forecast_s)
        self.drafting.observe(shape.drafting, seconds / self.speed)


class RoundTime:
    """Times of rounds by shape. *Relative* seconds are seconds on a machine of speed 1."""

    def __init__(self, experts: tuple[int, int] = (1, 1)) -> None:
        """`experts`: routed experts per layer, and active ones per token."""
        self._experts = experts
        self._forward = LeastSquares(_FORWARD, memory=_MEMORY)
        self._drafters: dict[str, _Drafter] = {}
        self._rows: dict[int, _Correction] = {}
        self._plain: dict[int, _Correction] = {}  # by size class
        self._speed = 1.0
        self._widest = 1  # most rows of a round seen so far
        self._table: Floats = np.zeros(0)  # relative seconds by number of rows
        self._solved = -1  # version of the linear model that the table was made from
        self._added: dict[tuple[int, int], Floats] = {}  # cached results of `more_rows` for this table

    @property
    def known(self) -> bool:
        """Whether any round was observed."""
        return self._forward.seen > 0

    def observe(self, shape: Shape, round_s: float, draft_s: float) -> None:
        """Learns from a round: `round_s` to its verdict, `draft_s` from there to its drafts."""
        rows = self._rows.setdefault(_cell(shape.rows), _Correction())
        if rows.seen >= _FEW:  # else the difference may be due to the new number of rows
            self._follow_speed(round_s / (self._speed * self._forward_s(shape)), 1.0)
        features = self._features(shape)
        self._forward.observe(features, round_s / self._speed, at_once=rows.seen < _FEW)
        if shape.followed or shape.drafts:
            self._drafter(shape.drafter).observe(shape, draft_s)
        rows.observe(_clipped(round_s / (self._speed * max(self._forward.value(features), 1e-9))))
        if shape.rows > self._widest:
            self._widest, self._solved = shape.rows, -1

    def observe_plain(self, shape: Shape, rounds_s: Sequence[float]) -> None:
        """Learns from consecutive plain rounds of this shape."""
        took_s = median(rounds_s)
        self._follow_speed(took_s / self.plain_s(shape), len(rounds_s) / _ROUNDS_LEARNED)
        known = self._plain.setdefault(size_class(shape.sequences), _Correction(_PLAIN_DOUBT, _PLAIN_MEMORY))
        known.observe(_clipped(took_s / (self._speed * self._forward_s(shape))))
        self.observe(shape, took_s, 0.0)

    def plain_s(self, shape: Shape) -> float:
        """Seconds of a plain round."""
        return self._speed * self.relative_plain_s(shape)

    def relative_plain_s(self, shape: Shape) -> float:
        """Relative seconds of a plain round, with the measured correction of its size class."""
        known = self._plain.get(size_class(shape.sequences))
        return self._forward_s(shape) * (known.factor if known else 1.0)

    def forecast_s(self, shape: Shape) -> float:
        """Seconds of a round, drafting included."""
        return self._speed * self._relative_s(shape)

    def more_rows(self, rows: int, more: int) -> Floats:
        """Relative seconds that 0 .. `more` rows add to a round of `rows`, [more + 1], non-decreasing.

        Infinite for more than twice the rows of any round seen.
        """
        table = self._tabulated(rows + more)
        added = self._added.get((rows, more))
        if added is None:
            added = self._added[rows, more] = table[rows : rows + more + 1] - table[rows]
            added[2 * max(rows, self._widest) - rows + 1 :] = math.inf
        return added

    def slot_s(self, context: float, *, sampled: bool) -> float:
        """Relative seconds per row that depend on its sequence: for reading its cache and for sampling."""
        *_, product, draw = self._forward.coefficients
        return _PER * product * context + draw * sampled

    def drafting(self, drafter: str) -> list[float]:
        """Coefficients of Shape.following and Shape.drafting, in relative seconds."""
        return [each / self._speed for each in self._drafter(drafter).coefficients]

    def _drafter(self, drafter: str) -> _Drafter:
        known = self._drafters.get(drafter)
        if known is None:
            scale = sum(self._forward.coefficients[:3]) / sum(_FORWARD[:3])
            following, drafting = (
                LeastSquares([scale * part for part in guess], memory=_MEMORY) for guess in (_FOLLOWING, _DRAFTING)
            )
            known = self._drafters[drafter] = _Drafter(following, drafting, self._speed)
        return known

    def _follow_speed(self, ratio: float, rounds: float) -> None:
        """Updates the speed from the ratio of measured to forecast time. `rounds`: weight, in learned rounds.

        Speed decays towards 1, so that the linear model learns lasting changes.
        """
        self._speed = _followed(self._speed**_SPEED_HELD, 1.0 - (1.0 - _SPEED_RATE) ** rounds, ratio)

    def _relative_s(self, shape: Shape) -> float:
        if not shape.followed and not shape.drafts:
            return self._forward_s(shape)
        features = (*shape.following, *shape.drafting)
        drafting_s: float = sum(map(mul, self.drafting(shape.drafter), features))
        return self._forward_s(shape) + drafting_s

    def _forward_s(self, shape: Shape) -> float:
        """Relative seconds to the verdict."""
        *_, sequence, context, product, draw = self._forward.coefficients
        by_rows = float(self._tabulated(shape.rows)[shape.rows])
        read = _PER * (context * shape.context + product * shape.rows_context)
        return by_rows + sequence * shape.sequences + read + draw * shape.sampled

    def _features(self, shape: Shape) -> tuple[float, ...]:
        experts, active = self._experts
        distinct = experts * (1.0 - (1.0 - active / experts) ** shape.rows)
        read = _PER * shape.context, _PER * shape.rows_context
        return (1.0, shape.rows, distinct, shape.sequences, *read, shape.sampled)

    def _tabulated(self, rows: int) -> Floats:
        """The table of relative seconds by number of rows, up to at least `rows`."""
        if self._solved != self._forward.solutions or len(self._table) <= rows:
            self._table = self._tabulate(max(2 * rows, len(self._table) - 1))
            self._solved, self._added = self._forward.solutions, {}
        return self._table

    def _tabulate(self, most: int) -> Floats:
        fixed, row, expert, *_ = self._forward.coefficients
        experts, active = self._experts
        rows = np.arange(most + 1)
        seconds = fixed + row * rows + expert * experts * (1.0 - (1.0 - active / experts) ** rows)
        seconds[self._widest + 1 :] -= _UNSEEN_ROWS * (seconds[self._widest + 1 :] - seconds[min(self._widest, most)])
        corrections = {cell: known.factor for cell, known in self._rows.items()}
        factors = np.array([corrections.get(_cell(number), 1.0) for number in range(most + 1)])
        table: Floats = np.maximum.accumulate(seconds * factors)
        return table


def size_class(sequences: int) -> int:
    """The class of batch sizes that share estimates: 0 (1), 1 (2), 2 (3-4), 3 (5-8), and so on."""
    return max(sequences - 1, 0).bit_length()


def _cell(rows: int) -> int:
    """The class of numbers of rows that share a correction: each number up to 32, then eight classes per doubling."""
    return rows if rows <= 32 else 32 + round(8 * math.log2(rows / 32))


def _followed(speed: float, rate: float, ratio: float) -> float:
    """The speed updated by an observation that took `ratio` times its forecast."""
    return speed * (1.0 + rate * (_clipped(ratio) - 1.0))


def _clipped(ratio: float) -> float:
    return min(max(ratio, 1.0 / _OUTLIER), _OUTLIER)
