"""What a round takes: a model of its seconds, learned online from the rounds themselves. Reads no clock.

Verifying costs a fixed part, rows, the experts that they wake, sequences, reading their context, and a share while
drafts are about, which take room in caches; drafting costs a start, steps and drafts, and following what was accepted.
Without speculation only the first is left. On top of that each number of rows has a correction of its own, because
kernels pad and split by their own rules; one that has not been seen for long counts less and less. Of rounds of more
than twice as many rows as any yet nothing is known.
"""

import math
from collections.abc import Sequence
from statistics import fmean, median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from outrider.workers.speculation.base_rounds import FEWEST, BaseRounds, Plain
from outrider.workers.speculation.gain import size_class
from outrider.workers.speculation.known_times import PER, KnownTimes, Shape
from outrider.workers.speculation.line import Line
from outrider.workers.speculation.row_cells import RowCells

Floats = NDArray[np.float64]

HELD = 32  # rounds between two looks at them, where drafts pay
_MEMORY = 400.0  # rounds
# First shape: fixed, row, expert, sequence, context, rows x context, drafts about
_VERIFYING = (1.0, 0.12, 0.12, 0.03, 0.02, 0.05, 0.03)
_DRAFTING = (0.03, 0.02, 0.1, 0.08, 0.01)  # first shape: following, token followed, drafting, step, draft
_TABLE_EVERY, _TABLES_AT_ONCE = 32, 16
_SMALLEST_TABLE = 64  # rows
_SPEED_RATE, _SPEED_CLIP, _SPEED_KEPT = 0.05, 1.5, 0.995
_NOW_RATE = 0.2  # the same as told by a few rounds: what a burst is compared with
_LEAST_SHARE = 0.67  # of a measured round without drafts: what one of shorter context is taken to last
_HOPED = 0.5  # of what a row beyond the widest round yet should add: a hope too low is put right by one round
_DECIDED = 0.1  # a look's weight in what deciding takes
_RESTED = 32  # rounds of a stop, the latest, that tell the machine's speed
_TAUGHT = 4  # of rounds in a row without drafts, so many teach the model too
_ODD = 2.0  # times what was forecast, of the making of drafts
_SURPRISE = 1.2  # times what was forecast, of a shape that is hardly known: learned from at once


class Forecast(NamedTuple):
    """What a round was expected to take."""

    verify_s: float  # to the verdict
    draft_s: float  # from there to the drafts
    sure: bool  # whether rounds of as many rows are known

    @property
    def whole_s(self) -> float:
        return self.verify_s + self.draft_s


class RoundCost:
    """Seconds of rounds by Shape."""

    def __init__(self, experts: tuple[int, int] = (1, 1)) -> None:
        """`experts`: how many routed ones a layer has, and how many a token wakes."""
        self._experts = experts
        self._verifying = Line(_VERIFYING, memory=_MEMORY)
        self._drafting: dict[str, Line] = {}
        self._cells = RowCells()
        self._bases: dict[int, BaseRounds] = {}  # by size class
        self._widest = 1  # rows of a round yet
        self._look_s = self._deciding_s = 0.0  # relative, of a round: with a look at those before it; without one
        self._speed = 1.0  # of late, over what the lines say: the machine has moods
        self._now = 1.0  # the same of the last few rounds
        self._rounds, self._most = 0, 0
        self._odd = False  # whether making the last drafts took far more or less than was forecast
        self._untold = False  # whether anything was observed that should change what is known
        self._table: Floats = np.zeros(0)  # relative seconds that depend on the number of rows alone
        self._known: KnownTimes  # in relative seconds
        self._added: dict[tuple[int, int], Floats] = {}  # answers of `more_rows`, while that holds
        self._tabulate(_SMALLEST_TABLE)

    def drafting(self, drafter: str) -> Line:
        """The relative seconds of what is done after a round.

        Coefficients: following at all, each token followed, drafting at all, each step, each draft.
        """
        self._tell()
        return self._drafting_line(drafter)

    def _drafting_line(self, drafter: str) -> Line:
        line = self._drafting.get(drafter)
        if line is None or not line.seen:  # on the scale of the rounds that are known by now
            scale = self._known.by_rows[1] / sum(_VERIFYING[:3])
            line = self._drafting[drafter] = Line([scale * part for part in _DRAFTING], memory=_MEMORY)
            self._known = self._known._replace(drafting={**self._known.drafting, drafter: line.coefficients})
        return line

    def decided(self, rounds_s: Sequence[float]) -> None:
        """So much went by deciding, in rounds that are looked at together now: the first had a look at those before."""
        look_s, *others_s = rounds_s
        self._look_s += _DECIDED * (look_s / self._speed - self._look_s)
        if others_s:
            self._deciding_s += _DECIDED * (fmean(others_s) / self._speed - self._deciding_s)

    @property
    def deciding(self) -> float:
        """Relative seconds of a round by deciding on drafts, where they pay, so that looks are rare."""
        return self._deciding_s + self._look_s / HELD

    @property
    def known(self) -> bool:
        """Whether any round was seen."""
        return self._rounds > 0

    def observe(self, shape: Shape, round_s: float, draft_s: float) -> Forecast:
        """Learns from a round: `round_s` until its tokens were handed out, `draft_s` from there to its drafts.

        The machine's speed is told only by rounds whose like is known: others tell what their shape takes. Returns what
        was forecast. What is news is made known when it is asked for next.
        """
        features, news = self._features(shape), False
        drafting = self._drafting_line(shape.drafter) if shape.followed or shape.drafts else None
        forecast = self._forecast(shape) if self.known else Forecast(round_s, draft_s, sure=False)
        ratio = (round_s + draft_s) / forecast.whole_s
        if forecast.sure:
            clipped = min(max(ratio, 1 / _SPEED_CLIP), _SPEED_CLIP)
            self._now += _NOW_RATE * (self._speed * clipped - self._now)
            if (base := self._bases.get(size_class(shape.sequences))) is not None:
                base.compare(self._speed * clipped)
            self._speed **= _SPEED_KEPT  # what lasts is the model's to learn: of speed alone nothing would hold it
            self._speed *= 1.0 + _SPEED_RATE * (clipped - 1.0)
        else:
            news = not 1 / _SURPRISE < ratio < _SURPRISE
        self._rounds += 1
        if shape.rows > self._widest:
            self._widest, self._added = shape.rows, {}
        relative_s = round_s / self._speed
        self._verifying.observe(features, relative_s, news=news)
        if drafting is not None:
            drafting.observe(shape.drafted, draft_s / self._speed, news=self._drafting_is_news(shape, draft_s))
        if not (shape.undrafted and shape.ready):  # what these take more is not their number's doing
            self._cells.observe(shape.rows, relative_s / max(self._verifying.seconds(features), 1e-9))
        self._most = max(self._most, 2 * shape.rows)
        due = self._rounds == 1 or self._rounds % _TABLE_EVERY == 0
        self._untold = due or self._untold or news or self._rounds <= _TABLES_AT_ONCE
        if due:
            self._tell()
        return forecast

    def _drafting_is_news(self, shape: Shape, draft_s: float) -> bool:
        """Whether making drafts took far more or less than was forecast, twice in a row: once may be a disturbance."""
        ratio, before = draft_s / max(self._speed * self._known.draft(shape), 1e-9), self._odd
        self._odd = not 1 / _ODD < ratio < _ODD
        self._untold = self._untold or (self._odd and before)
        return self._odd and before

    def _tell(self) -> None:
        """Makes what was observed known, if there is enough of it."""
        if not self._untold:
            return
        self._untold = False
        for line in (self._verifying, *self._drafting.values()):
            if line.due:
                line.solve()
        self._tabulate(max(len(self._known.by_rows) - 1, self._most))

    def forecast(self, shape: Shape) -> Forecast:
        """Of a round."""
        self._tell()
        if shape.followed or shape.drafts:
            self._drafting_line(shape.drafter)
        return self._forecast(shape)

    def _forecast(self, shape: Shape) -> Forecast:
        self._reach(shape.rows)
        known, speed = self._known, self._speed
        return Forecast(speed * known.verify(shape), speed * known.draft(shape), self._cells.known(shape.rows))

    def undrafted(self, sequences: int, context: float) -> float:
        """Seconds of a round that speculation has no part in: as measured, if any of about that size were."""
        self._reach(sequences)
        modelled, base = self._known.plain(sequences, context), self._bases.get(size_class(sequences))
        if base is None or not base.known:
            return self._speed * modelled
        alike = self._known.plain(sequences, sequences * base.like.context / base.like.sequences)
        more, longer = alike / self._known.plain(*base.like), modelled / alike
        return self._speed * base.relative * more * min(max(longer, _LEAST_SHARE), 1.0)  # longer: another burst tells

    def plain(self, sequences: int, context: float) -> float:
        """Relative seconds of the same."""
        return self.undrafted(sequences, context) / self._speed

    def measured(self, rounds: Sequence[tuple[Shape, float]]) -> None:
        """Rounds in a row that speculation had no part in, and what they took; where lanes differ, each for itself.

        Sequences come and end meanwhile: all rounds of one size are taken as if they had had as many as the last.
        """
        speed = self._now
        for shape, round_s in rounds[-_TAUGHT:]:
            self.observe(shape, round_s, 0.0)
        for size in {size_class(shape.sequences) for shape, _ in rounds}:
            alike = [(shape, seconds) for shape, seconds in rounds if size_class(shape.sequences) == size]
            sequences = alike[-1][0].sequences
            like = Plain(sequences, sequences * fmean([shape.context / shape.sequences for shape, _ in alike]))
            took = [seconds * self._longer(shape, sequences) for shape, seconds in alike]
            self._bases.setdefault(size, BaseRounds()).measured(self._rounds, like, took, speed)

    def _longer(self, shape: Shape, sequences: int) -> float:
        """How many times as long a round like this without drafts takes of so many sequences, as modelled."""
        if sequences == shape.sequences:
            return 1.0
        self._reach(max(sequences, shape.sequences))
        plain, others_context = self._known.plain, sequences * shape.context / shape.sequences
        return plain(sequences, others_context) / plain(shape.sequences, shape.context)

    def rested(self, rounds: Sequence[tuple[Shape, float]]) -> None:
        """Rounds of a stop. They tell the machine's speed, if it is known what they take at that."""
        shape, _ = rounds[-1]
        base = self._bases.get(size_class(shape.sequences))
        if base is None or not base.like_those_of(shape.context / shape.sequences):
            self.measured(rounds)
            return
        size = size_class(shape.sequences)
        alike = [(of, seconds) for of, seconds in rounds[-_RESTED:] if size_class(of.sequences) == size]
        if len(alike) >= FEWEST:
            self._speed *= median([seconds / self.undrafted(of.sequences, of.context) for of, seconds in alike])
            self._now = self._speed
            base.doubt(self._rounds)

    def forget_bases(self) -> None:
        """Rounds without drafts are to be measured anew."""
        self._bases.clear()

    def base_due(self, sequences: int, context: float, gain: float) -> bool:
        """Whether rounds without drafts, of about so many sequences, should be measured before others are weighed.

        `context`: tokens, summed over the sequences. `gain`: how many times as fast drafts make rounds.
        """
        base = self._bases.get(size_class(sequences))
        return base is None or base.due(self._rounds, gain, context / sequences)

    def more_rows(self, rows: int, more: int) -> Floats:
        """Relative seconds that 0 .. `more` rows add to a round of `rows`, [more + 1]: never falling.

        Their reading of the context is not in it: see `slot`. Infinite where no round was nearly as wide.
        """
        self._tell()
        added = self._added.get((rows, more))
        if added is None:
            self._reach(rows + more)
            added = self._added[rows, more] = self._table[rows : rows + more + 1] - self._table[rows]
            added[2 * max(rows, self._widest) - rows + 1 :] = math.inf
        return added

    def further_row(self, rows: int) -> float:
        """Relative seconds that a row adds to a round of `rows`, where as many again are added."""
        self._tell()
        self._reach(2 * rows)
        return (self._known.by_rows[2 * rows] - self._known.by_rows[rows]) / rows

    @property
    def readiness(self) -> float:
        """Relative seconds that a round takes longer because drafts are about."""
        return self._verifying.coefficients[6]

    def slot(self, context: float) -> float:
        """Relative seconds that one more row of a sequence of `context` tokens reads the cache for."""
        return PER * self._verifying.coefficients[5] * context

    def stale(self, rows: int) -> bool:
        """Whether rounds of so many rows should be measured again."""
        return self._cells.stale(rows)

    def _reach(self, rows: int) -> None:
        """Sees to it that so many are in the table."""
        if len(self._known.by_rows) <= rows:
            self._tabulate(2 * rows)

    def _features(self, shape: Shape) -> tuple[float, ...]:
        experts, woken = self._experts
        distinct = experts * (1.0 - (1.0 - woken / experts) ** shape.rows)
        context, product = PER * shape.context, PER * shape.rows_context
        return (1.0, shape.rows, distinct, shape.sequences, context, product, float(shape.ready))

    def _tabulate(self, most: int) -> None:
        """Relative seconds by the number of rows alone, 0 .. `most`: for many, and for one."""
        fixed, row, expert, *_ = self._verifying.coefficients
        experts, woken = self._experts
        rows = np.arange(most + 1)
        line = fixed + row * rows + expert * experts * (1.0 - (1.0 - woken / experts) ** rows)
        line[self._widest + 1 :] = line[self._widest] + _HOPED * (line[self._widest + 1 :] - line[self._widest])
        self._table = np.maximum.accumulate(line * self._cells.factors(most))
        drafting = {drafter: line.coefficients for drafter, line in self._drafting.items()}
        self._known, self._added = KnownTimes(self._table.tolist(), self._verifying.coefficients, drafting), {}
