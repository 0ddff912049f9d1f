"""What is known of rounds' times at a moment: a round's shape, and its seconds by parts. Pure, and never changes."""

from collections.abc import Mapping, Sequence
from operator import mul
from typing import NamedTuple

PER = 1e-3  # contexts are counted in thousands of tokens


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

    @property
    def drafted(self) -> tuple[float, ...]:
        """What the time of its drafts is in proportion to: following at all, tokens, drafting at all, steps, drafts."""
        return (float(self.followed > 0), self.followed, float(self.steps > 0), self.steps, self.drafts)


class KnownTimes(NamedTuple):
    """Coefficients, and a table."""

    by_rows: list[float]  # seconds that depend on the number of rows alone
    verifying: Sequence[float]  # fixed, row, expert (all in the table), sequence, context, rows x context, ready
    drafting: Mapping[str, Sequence[float]]  # by drafter, as Shape.drafted has them

    def verify(self, shape: Shape) -> float:
        """To the verdict. IndexError beyond the table."""
        _, _, _, sequence, context, product, ready = self.verifying
        rest = sequence * shape.sequences + PER * (context * shape.context + product * shape.rows_context)
        return self.by_rows[shape.rows] + rest + ready * shape.ready

    def draft(self, shape: Shape) -> float:
        """From there to the drafts; 0 for a drafter of whom nothing is known."""
        seconds: float = sum(map(mul, self.drafting.get(shape.drafter, ()), shape.drafted))
        return seconds

    def plain(self, sequences: int, context: float) -> float:
        """Of a round that speculation has no part in."""
        *_, sequence, per_context, product, _ = self.verifying
        return self.by_rows[sequences] + sequence * sequences + PER * (per_context + product) * context
