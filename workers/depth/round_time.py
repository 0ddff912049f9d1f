"""What a round takes: seconds as a function of its shape, learned online from the rounds themselves. Reads no clock.

Two linear models, one for the forward pass and sampling, one for drafting, each times the machine's present speed. On
top of them each number of rows has a correction, because kernels pad and split by rules of their own. Plain rounds,
which speculation takes no part in, are what all gains and losses are counted against, so they are measured themselves.
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

# Shares of a first round, from scout on two cores: fixed, row, expert, sequence, context, rows x context, sampled row
_FORWARD = (1.0, 0.12, 0.12, 0.03, 0.02, 0.05, 0.05)
# The same after it: following at all, followed token; drafting at all, step, draft, sampled draft
_FOLLOWING, _DRAFTING = (0.03, 0.02), (0.1, 0.08, 0.01, 0.01)
_PER = 1e-3  # contexts are counted in thousands of tokens, so that coefficients are of one order
_MEMORY = 400.0  # rounds; recorded rounds are forecast best with 200 to 800 (recordings/scout-rounds.npz)
_SPEED_RATE = 0.15  # a round's weight in the machine's speed, which drifts within tens of rounds
_DRAFTER_RATE = 0.1  # the same of a drafter's speed: drafts that turn ten times dearer are noticed within 100 rounds
_SPEED_HELD = 0.995  # the power to which it is raised each time: else it drifts to 0.7 in 500 even rounds (simulation)
_ROUNDS_LEARNED = 4.0  # of these rounds one is learned from, and moves the speed (policy.py)
_OUTLIER = 1.5  # times its forecast, beyond which a round is counted as so much: 1 in 100 recorded rounds is
_ROWS_MEMORY = 24.0  # rounds that a number of rows' correction remembers
_FEW = 6.0  # rounds that make a number of rows known, and halve the weight of its correction where fewer were seen
_PLAIN_DOUBT = 1.0  # measurements of plain rounds that the model's forecast of them counts as
_PLAIN_MEMORY = 8.0  # measurements that the correction of plain rounds remembers
_UNSEEN_ROWS = 0.5  # of what rows beyond any seen yet should add: optimism is corrected by a single round


class Shape(NamedTuple):
    """A round as far as its time depends on it."""

    sequences: int
    rows: int
    context: float  # tokens, summed over the sequences
    rows_context: float  # tokens, summed over the rows
    sampled: int = 0  # rows drawn at a temperature above 0
    steps: int = 0  # of the drafts made after it, the deepest
    drafts: int = 0  # made after it
    sampled_drafts: int = 0  # of these, drawn at a temperature above 0
    followed: int = 0  # tokens that the drafter took in after it
    drafter: str = "mtp"

    @classmethod
    def plain(cls, sequences: int, context: float, sampled: int = 0) -> "Shape":
        """A decoding round that speculation takes no part in."""
        return cls(sequences, sequences, context, context, sampled)

    @property
    def following(self) -> tuple[float, ...]:
        """What the time in which the drafter takes in tokens is in proportion to."""
        return float(self.followed > 0), self.followed

    @property
    def drafting(self) -> tuple[float, ...]:
        """What the time of its drafts is in proportion to."""
        return float(self.steps > 0), self.steps, self.drafts, self.sampled_drafts


@dataclass(slots=True)
class _Correction:
    """How rounds of one number of rows, or plain rounds of one size class, compare with the linear model."""

    doubt: float = _FEW / 2  # rounds' worth of trust in the model
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
    """The linear models of one drafter's seconds, and its present speed."""

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
    """Seconds of rounds by shape. *Relative* seconds are seconds on a machine of speed 1."""

    def __init__(self, experts: tuple[int, int] = (1, 1)) -> None:
        """`experts`: how many routed experts a layer has, and how many of them a token activates."""
        self._experts = experts
        self._forward = LeastSquares(_FORWARD, memory=_MEMORY)
        self._drafters: dict[str, _Drafter] = {}
        self._rows: dict[int, _Correction] = {}
        self._plain: dict[int, _Correction] = {}  # by size class
        self._speed = 1.0
        self._widest = 1  # rows of a round yet
        self._table: Floats = np.zeros(0)  # relative seconds that depend on the number of rows alone
        self._solved = -1  # solutions of the linear model that the table holds
        self._added: dict[tuple[int, int], Floats] = {}  # answers of `more_rows` while the table holds

    @property
    def known(self) -> bool:
        """Whether any round was seen."""
        return self._forward.seen > 0

    def observe(self, shape: Shape, round_s: float, draft_s: float) -> None:
        """Learns from a round: `round_s` to its verdict, `draft_s` from there to its drafts."""
        rows = self._rows.setdefault(_cell(shape.rows), _Correction())
        if rows.seen >= _FEW:  # else the surprise is the shape's
            self._follow_speed(round_s / (self._speed * self._forward_s(shape)), 1.0)
        features = self._features(shape)
        self._forward.observe(features, round_s / self._speed, at_once=rows.seen < _FEW)
        if shape.followed or shape.drafts:
            self._drafter(shape.drafter).observe(shape, draft_s)
        rows.observe(_clipped(round_s / (self._speed * max(self._forward.value(features), 1e-9))))
        if shape.rows > self._widest:
            self._widest, self._solved = shape.rows, -1

    def observe_plain(self, shape: Shape, rounds_s: Sequence[float]) -> None:
        """Plain rounds like `shape` in a row."""
        took_s = median(rounds_s)
        self._follow_speed(took_s / self.plain_s(shape), len(rounds_s) / _ROUNDS_LEARNED)
        known = self._plain.setdefault(size_class(shape.sequences), _Correction(_PLAIN_DOUBT, _PLAIN_MEMORY))
        known.observe(_clipped(took_s / (self._speed * self._forward_s(shape))))
        self.observe(shape, took_s, 0.0)

    def plain_s(self, shape: Shape) -> float:
        """Seconds of a plain round."""
        return self._speed * self.relative_plain_s(shape)

    def relative_plain_s(self, shape: Shape) -> float:
        """The same in relative seconds, corrected as measured in rounds of about that size."""
        known = self._plain.get(size_class(shape.sequences))
        return self._forward_s(shape) * (known.factor if known else 1.0)

    def forecast_s(self, shape: Shape) -> float:
        """Seconds of a round with its drafting."""
        return self._speed * self._relative_s(shape)

    def more_rows(self, rows: int, more: int) -> Floats:
        """Relative seconds that 0 .. `more` rows add to a round of `rows`, [more + 1]: never falling.

        Infinite where no round was half as wide.
        """
        table = self._tabulated(rows + more)
        added = self._added.get((rows, more))
        if added is None:
            added = self._added[rows, more] = table[rows : rows + more + 1] - table[rows]
            added[2 * max(rows, self._widest) - rows + 1 :] = math.inf
        return added

    def slot_s(self, context: float, *, sampled: bool) -> float:
        """Relative seconds that one more row of a sequence adds by itself: it reads its cache, and may be drawn."""
        *_, product, draw = self._forward.coefficients
        return _PER * product * context + draw * sampled

    def drafting(self, drafter: str) -> list[float]:
        """Relative seconds after a round, of each feature of Shape.following and of Shape.drafting."""
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
        """Rounds took `ratio` times what was forecast of them; `rounds`: how many learned ones they count as.

        What lasts is the linear model's to learn.
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
        """The table, which reaches to `rows` at least."""
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
    """Numbers of sequences that share their estimates: 0 (1), 1 (2), 2 (3-4), 3 (5-8), and so on."""
    return max(sequences - 1, 0).bit_length()


def _cell(rows: int) -> int:
    """Numbers of rows that share a correction: each up to 32, then eight to a doubling."""
    return rows if rows <= 32 else 32 + round(8 * math.log2(rows / 32))


def _followed(speed: float, rate: float, ratio: float) -> float:
    """The speed after an observation that took `ratio` times its forecast."""
    return speed * (1.0 + rate * (_clipped(ratio) - 1.0))


def _clipped(ratio: float) -> float:
    return min(max(ratio, 1.0 / _OUTLIER), _OUTLIER)
