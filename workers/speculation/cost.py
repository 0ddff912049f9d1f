"""What a round takes: a model of its seconds, learned online from the rounds themselves. Reads no clock.

Verifying costs a fixed part, rows, the experts that they wake, sequences, reading their context, and a share while
drafts are about, which take room in caches; drafting costs a start, steps and drafts, and following what was accepted.
Without speculation only the first is left. On top of that each number of rows has a correction of its own, because
kernels pad and split by their own rules; one that has not been seen for long counts less and less. Of rounds of more
than twice as many rows as any yet nothing is known.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from outrider.workers.speculation.line import Line
from outrider.workers.speculation.price import size_class
from outrider.workers.speculation.row_cells import RowCells

Floats = NDArray[np.float64]

_MEMORY = 400.0  # rounds
_PER = 1e-3  # contexts are counted in thousands of tokens
# First shape: fixed, row, expert, sequence, context, rows x context, drafts about
_VERIFYING = (1.0, 0.12, 0.12, 0.03, 0.02, 0.05, 0.03)
_DRAFTING = (0.03, 0.02, 0.1, 0.08, 0.01)  # first shape: following, token followed, drafting, step, draft
_TABLE_EVERY, _TABLES_AT_ONCE = 32, 16
_SMALLEST_TABLE = 64  # rows
_SPEED_RATE, _SPEED_CLIP = 0.05, 1.5
_SURPRISE = 1.2  # times what was forecast, of a shape that is hardly known: learned from at once
BASE_ROUNDS = 4  # undrafted rounds of a size that are measured together


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
    ready: bool = False  # drafts were made or verified a moment ago: caches are theirs too

    @property
    def undrafted(self) -> bool:
        """Whether drafts have no part in it; they may be made after it."""
        return self.rows == self.sequences


class RoundCost:
    """Seconds of rounds by Shape."""

    def __init__(self, experts: tuple[int, int] = (1, 1)) -> None:
        """`experts`: how many routed ones a layer has, and how many a token wakes."""
        self._experts = experts
        self._verifying = Line(_VERIFYING, memory=_MEMORY)
        self._drafting: dict[str, Line] = {}
        self._cells = RowCells()
        self._bases: dict[int, _Base] = {}  # by size class
        self._widest = 1  # rows of a round yet
        self._speed = 1.0  # of late, over what the lines say: the machine has moods
        self._rounds = 0
        self._table: Floats = np.zeros(0)  # relative seconds that depend on the number of rows alone
        self._by_rows: list[float] = []  # the same
        self._added: dict[tuple[int, int], Floats] = {}  # answers of `more_rows`, while that holds
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
        """Learns from a round: `round_s` until its tokens were handed out, `draft_s` from there to its drafts.

        The machine's speed is told only by rounds whose like is known: others tell what their shape takes.
        """
        features, news = self._features(shape), False
        ratio = (round_s + draft_s) / max(self.forecast(shape), 1e-9)
        if self._cells.known(shape.rows):
            self._speed *= 1.0 + _SPEED_RATE * (min(max(ratio, 1 / _SPEED_CLIP), _SPEED_CLIP) - 1.0)
        else:
            news = not 1 / _SURPRISE < ratio < _SURPRISE
        self._rounds += 1
        if shape.rows > self._widest:
            self._widest, self._added = shape.rows, {}
        relative_s = round_s / self._speed
        self._verifying.observe(features, relative_s, news=news)
        if shape.followed or shape.drafts:
            self.drafting(shape.drafter).observe(_drafted(shape), draft_s / self._speed)
        if not (shape.undrafted and shape.ready):  # what these take more is not their number's doing
            self._cells.observe(shape.rows, relative_s / max(self._verifying.seconds(features), 1e-9))
        if shape.undrafted and not shape.ready:
            self._bases.setdefault(size_class(shape.sequences), _Base()).seen(self._rounds)
        if news or self._rounds <= _TABLES_AT_ONCE or self._rounds % _TABLE_EVERY == 0:
            self._tabulate(max(len(self._by_rows) - 1, 2 * shape.rows))

    def forecast(self, shape: Shape) -> float:
        """Seconds to its verdict and from there to its drafts."""
        return self._speed * (self._verify(shape) + self._draft(shape))

    def undrafted(self, sequences: int, context: float) -> float:
        """Seconds of a round that speculation has no part in."""
        return self._speed * self.plain(sequences, context)

    def plain(self, sequences: int, context: float) -> float:
        """Relative seconds of the same."""
        *_, sequence, per_context, product, _ = self._verifying.coefficients
        return self._rows(sequences) + sequence * sequences + _PER * (per_context + product) * context

    def base_known(self, sequences: int) -> bool:
        """Whether rounds without drafts, of about so many sequences, were ever measured."""
        base = self._bases.get(size_class(sequences))
        return base is not None and base.known

    def base_due(self, sequences: int, every: float) -> bool:
        """Whether rounds without drafts, of about so many sequences, should be measured before others are weighed.

        At first, and again when `every` rounds have gone by: a few in a row, since one among others is slower.
        """
        base = self._bases.get(size_class(sequences))
        return base is None or base.due(self._rounds, every)

    def more_rows(self, rows: int, more: int) -> Floats:
        """Relative seconds that 0 .. `more` rows add to a round of `rows`, [more + 1]: never falling.

        Their reading of the context is not in it: see `slot`. Infinite where no round was nearly as wide.
        """
        added = self._added.get((rows, more))
        if added is None:
            self._rows(rows + more)  # so many are in the table
            added = self._added[rows, more] = self._table[rows : rows + more + 1] - self._table[rows]
            added[2 * max(rows, self._widest) - rows + 1 :] = math.inf
        return added

    def further_row(self, rows: int) -> float:
        """Relative seconds that a row adds to a round of `rows`, where as many again are added."""
        return (self._rows(2 * rows) - self._rows(rows)) / rows

    @property
    def readiness(self) -> float:
        """Relative seconds that a round takes longer because drafts are about."""
        return self._verifying.coefficients[6]

    def slot(self, context: float) -> float:
        """Relative seconds that one more row of a sequence of `context` tokens reads the cache for."""
        return _PER * self._verifying.coefficients[5] * context

    def stale(self, rows: int) -> bool:
        """Whether rounds of so many rows should be measured again."""
        return self._cells.stale(rows)

    def _verify(self, shape: Shape) -> float:
        """Relative seconds to the verdict."""
        _, _, _, sequence, context, product, ready = self._verifying.coefficients
        rest = sequence * shape.sequences + _PER * (context * shape.context + product * shape.rows_context)
        return self._rows(shape.rows) + rest + ready * shape.ready

    def _rows(self, rows: int) -> float:
        """Relative seconds that depend on the number of rows alone."""
        if len(self._by_rows) <= rows:
            self._tabulate(2 * rows)
        return self._by_rows[rows]

    def _draft(self, shape: Shape) -> float:
        return self.drafting(shape.drafter).seconds(_drafted(shape))

    def _features(self, shape: Shape) -> tuple[float, ...]:
        experts, woken = self._experts
        distinct = experts * (1.0 - (1.0 - woken / experts) ** shape.rows)
        context, product = _PER * shape.context, _PER * shape.rows_context
        return (1.0, shape.rows, distinct, shape.sequences, context, product, float(shape.ready))

    def _tabulate(self, most: int) -> None:
        """Relative seconds by the number of rows alone, 0 .. `most`: for many, and for one."""
        fixed, row, expert, *_ = self._verifying.coefficients
        experts, woken = self._experts
        rows = np.arange(most + 1)
        line = fixed + row * rows + expert * experts * (1.0 - (1.0 - woken / experts) ** rows)
        self._table = np.maximum.accumulate(line * self._cells.factors(most))
        self._by_rows, self._added = self._table.tolist(), {}


class _Base:
    """Rounds without drafts that were seen of one size, and when enough of them had been."""

    __slots__ = ("_enough_at", "_rounds")

    def __init__(self) -> None:
        self._rounds = 0
        self._enough_at: int | None = None

    def seen(self, now: int) -> None:
        self._rounds += 1
        if self._rounds % BASE_ROUNDS == 0:
            self._enough_at = now

    @property
    def known(self) -> bool:
        return self._enough_at is not None

    def due(self, now: int, every: float) -> bool:
        return self._enough_at is None or now - self._enough_at >= every


def _drafted(shape: Shape) -> tuple[float, ...]:
    return (float(shape.followed > 0), shape.followed, float(shape.steps > 0), shape.steps, shape.drafts)
