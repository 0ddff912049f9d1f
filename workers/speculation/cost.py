"""What a round takes: a model of its seconds, learned online from the rounds themselves. Reads no clock.

Verifying costs a fixed part, rows, the experts that they wake, sequences, and reading their context; drafting costs a
start, steps and drafts, and following what was accepted. Without speculation only the first is left. On top of that
each number of rows has a correction of its own, because kernels pad and split by their own rules; one that has not been
seen for long counts less and less.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from outrider.workers.speculation.line import Line
from outrider.workers.speculation.row_cells import RowCells

Floats = NDArray[np.float64]

_MEMORY = 400.0  # rounds
_PER = 1e-3  # contexts are counted in thousands of tokens
_VERIFYING = (1.0, 0.12, 0.12, 0.03, 0.02, 0.05)  # first shape: fixed, row, expert, sequence, context, rows x context
_DRAFTING = (0.03, 0.02, 0.1, 0.08, 0.01)  # first shape: following, token followed, drafting, step, draft
_TABLE_EVERY, _TABLES_AT_ONCE = 32, 16
_SMALLEST_TABLE = 64  # rows
_SPEED_RATE, _SPEED_CLIP = 0.05, 1.5


class Shape(NamedTuple):
    """A round as far as its time depends on it."""

    sequences: int
    rows: int
    context: float  # tokens, summed over the sequences
    rows_context: float  # tokens, summed over the rows
    steps: int = 0  # of the drafts made after it, the deepest
    drafts: int = 0  # made after it
    followed: int = 0  # tokens that the drafter took in after it
    drafter: str = "mtp"


class RoundCost:
    """Seconds of rounds by Shape."""

    def __init__(self, experts: tuple[int, int] = (1, 1)) -> None:
        """`experts`: how many routed ones a layer has, and how many a token wakes."""
        self._experts = experts
        self._verifying = Line(_VERIFYING, memory=_MEMORY)
        self._drafting: dict[str, Line] = {}
        self._cells = RowCells()
        self._speed = 1.0  # of late, over what the lines say: the machine has moods
        self._rounds = 0
        self._by_rows: list[float] = []
        self._tabulate(_SMALLEST_TABLE)

    def drafting(self, drafter: str) -> Line:
        """The relative seconds of what is done after a round.

        Coefficients: following at all, each token followed, drafting at all, each step, each draft.
        """
        if drafter not in self._drafting:
            self._drafting[drafter] = Line(_DRAFTING, memory=_MEMORY)
        return self._drafting[drafter]

    @property
    def known(self) -> bool:
        """Whether any round was seen."""
        return self._rounds > 0

    @property
    def speed(self) -> float:
        """How many seconds a relative one is at present: those of `more_rows`, `slot` and `drafting`."""
        return self._speed

    def observe(self, shape: Shape, round_s: float, draft_s: float) -> None:
        """Learns from a round: `round_s` until its tokens were handed out, `draft_s` from there to its drafts."""
        verify, draft = self._verify(shape), self._draft(shape)
        if self._rounds:
            ratio = (round_s + draft_s) / max(self._speed * (verify + draft), 1e-9)
            self._speed *= 1.0 + _SPEED_RATE * (min(max(ratio, 1 / _SPEED_CLIP), _SPEED_CLIP) - 1.0)
        self._rounds += 1
        features = self._features(shape)
        self._verifying.observe(features, round_s / self._speed)
        if shape.followed or shape.drafts:
            self.drafting(shape.drafter).observe(_drafted(shape), draft_s / self._speed)
        self._cells.observe(shape.rows, round_s / self._speed / max(self._verifying.seconds(features), 1e-9))
        if self._rounds <= _TABLES_AT_ONCE or self._rounds % _TABLE_EVERY == 0:
            self._tabulate(max(len(self._by_rows) - 1, 2 * shape.rows))

    def forecast(self, shape: Shape) -> float:
        """Seconds to its verdict and from there to its drafts."""
        return self._speed * (self._verify(shape) + self._draft(shape))

    def undrafted(self, sequences: int, context: float) -> float:
        """Seconds of a round without any drafts, neither verified nor made, and nothing followed."""
        return self._speed * self._verify(Shape(sequences, sequences, context, context))

    def more_rows(self, rows: int, more: int) -> list[float]:
        """Relative seconds that 0 .. `more` rows add to a round of `rows`, [more + 1]: never falling.

        Their reading of the context is not in it: see `slot`.
        """
        if len(self._by_rows) <= rows + more:
            self._tabulate(2 * (rows + more))
        first = self._by_rows[rows]
        return [seconds - first for seconds in self._by_rows[rows : rows + more + 1]]

    def slot(self, context: float) -> float:
        """Relative seconds that one more row of a sequence of `context` tokens reads the cache for."""
        return _PER * self._verifying.coefficients[5] * context

    def stale(self, rows: int) -> bool:
        """Whether rounds of so many rows should be measured again."""
        return self._cells.stale(rows)

    def _verify(self, shape: Shape) -> float:
        """Relative seconds to the verdict."""
        if len(self._by_rows) <= shape.rows:
            self._tabulate(2 * shape.rows)
        _, _, _, sequence, context, product = self._verifying.coefficients
        rest = sequence * shape.sequences + _PER * (context * shape.context + product * shape.rows_context)
        return self._by_rows[shape.rows] + rest

    def _draft(self, shape: Shape) -> float:
        return self.drafting(shape.drafter).seconds(_drafted(shape))

    def _features(self, shape: Shape) -> tuple[float, ...]:
        experts, woken = self._experts
        distinct = experts * (1.0 - (1.0 - woken / experts) ** shape.rows)
        return (1.0, shape.rows, distinct, shape.sequences, _PER * shape.context, _PER * shape.rows_context)

    def _tabulate(self, most: int) -> None:
        """Relative seconds by the number of rows alone, 0 .. `most`."""
        fixed, row, expert, *_ = self._verifying.coefficients
        experts, woken = self._experts
        rows = np.arange(most + 1)
        line = fixed + row * rows + expert * experts * (1.0 - (1.0 - woken / experts) ** rows)
        self._by_rows = np.maximum.accumulate(line * self._cells.factors(most)).tolist()


def _drafted(shape: Shape) -> tuple[float, ...]:
    return (float(shape.followed > 0), shape.followed, float(shape.steps > 0), shape.steps, shape.drafts)
