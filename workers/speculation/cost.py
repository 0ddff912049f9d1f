"""How long a round takes by its depth: engine-wide, per size of batch, learned from the rounds themselves.

Knows nothing of acceptance, and reads no clock.
"""

from bisect import bisect_right
from dataclasses import dataclass, field

SETTLING = 3  # first observations of a depth, of which the fastest counts: what disturbs a round makes it slower
_RATE = 0.1  # weight of an observation after that
_CLIP = 1.5  # an observation counts as at most this many times the estimate, and at least its inverse
_FIRST_SLOPE = 0.3  # before anything is known: what a draft adds to a round, as a share of the round


@dataclass(slots=True)
class _Curve:
    """Seconds by depth, for one size of batch."""

    seconds: dict[int, float] = field(default_factory=dict)
    seen: dict[int, float] = field(default_factory=dict)


class RoundCosts:
    """Estimates the seconds of a round of (batch, depth), where depth is the mean over the batch."""

    def __init__(self, depths: tuple[int, ...]) -> None:
        self._depths = depths
        self._curves: dict[int, _Curve] = {}

    def observe(self, batch: int, depth: float, seconds: float) -> None:
        """Learns from a round. Where the mean depth lies between two depths, they share the error by nearness."""
        predicted = self.seconds(batch, depth) if self._curves else seconds
        weights = self._weights(depth)
        before = {near: self.seconds(batch, near) if self._curves else seconds for near in weights}
        curve = self._curves.setdefault(size_class(batch), _Curve())
        for near, weight in weights.items():
            seen = curve.seen.get(near, 0.0)
            curve.seconds[near] = max(before[near] + weight * _step(seen, predicted, seconds), 0.1 * predicted)
            curve.seen[near] = seen + weight

    def seen(self, batch: int, depth: int) -> float:
        """How many rounds taught us of (batch, depth)."""
        curve = self._curves.get(size_class(batch))
        return curve.seen.get(depth, 0.0) if curve else 0.0

    def seconds(self, batch: int, depth: float) -> float:
        """The estimate, on straight lines between the depths that were tried. Unknown sizes take the nearest's."""
        return _on_lines(sorted(self._nearest(size_class(batch)).items()), depth)

    def by_depth(self, batch: int) -> dict[int, float]:
        """`seconds` of every depth."""
        points = sorted(self._nearest(size_class(batch)).items())
        return {depth: _on_lines(points, depth) for depth in self._depths}

    def _nearest(self, wanted: int) -> dict[int, float]:
        if not self._curves:
            return {}
        return self._curves[min(self._curves, key=lambda size: abs(size - wanted))].seconds

    def _weights(self, depth: float) -> dict[int, float]:
        """The depths of the grid about `depth`, and its nearness to each; they sum to 1."""
        above = bisect_right(self._depths, depth)
        if above == len(self._depths):
            return {self._depths[-1]: 1.0}
        low, high = self._depths[above - 1], self._depths[above]
        share = (depth - low) / (high - low)
        return {low: 1.0 - share, high: share} if share > 0 else {low: 1.0}


def size_class(batch: int) -> int:
    """Batches of one class share their estimates: 1, 2, 3-4, 5-8, and so on."""
    return (batch - 1).bit_length()


def _on_lines(points: list[tuple[int, float]], depth: float) -> float:
    """The seconds at `depth` on straight lines through (depth, seconds), rising ones; a guess from less than two."""
    if len(points) < 2:
        at, base = points[0] if points else (0, 1.0)
        return base * (1.0 + _FIRST_SLOPE * depth) / (1.0 + _FIRST_SLOPE * at)
    above = 1
    while above < len(points) - 1 and points[above][0] <= depth:
        above += 1
    (low, low_s), (high, high_s) = points[above - 1], points[above]
    return max(low_s + (high_s - low_s) * (depth - low) / (high - low), 0.1 * low_s)


def _step(seen: float, predicted: float, seconds: float) -> float:
    """How far to move the estimate."""
    if seen < 1:
        return seconds - predicted
    if seen < SETTLING:
        return min(0.0, seconds - predicted)
    return _RATE * (min(max(seconds, predicted / _CLIP), predicted * _CLIP) - predicted)
