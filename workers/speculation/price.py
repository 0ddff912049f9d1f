"""What it costs to verify one more draft, in tokens: the time that a row adds to a round, at the present speed.

A draft that was made is worth verifying if it is accepted more often than that. Pure: seconds are given to it.
"""

_KEEP = 0.98  # of what was seen, when a round is added
_CLIP = 2.0  # a round counts as at most this many times the mean: what disturbs a round makes it slower
_ENOUGH = 30.0  # rounds, and
_SPREAD = 0.2  # variance of their rows, before a row's time is known
_CAUTION = 0.5  # of the price that is asked: one too high loses tokens, one too low a little time


class VerificationPrice:
    """A line through the seconds of recent rounds by their rows; its slope is a row's time."""

    def __init__(self) -> None:
        self._weight = self._rows = self._seconds = self._products = self._squares = 0.0
        self._tokens = self._whole_s = 0.0

    def observe(self, rows: int, tokens: int, round_s: float, made_s: float) -> None:
        """Learns from a decoding round of `rows` rows that emitted `tokens`. Its drafts had taken `made_s` to make."""
        if self._weight:
            round_s = min(round_s, _CLIP * self._seconds / self._weight)
        self._weight = self._weight * _KEEP + 1
        self._rows = self._rows * _KEEP + rows
        self._seconds = self._seconds * _KEEP + round_s
        self._products = self._products * _KEEP + rows * round_s
        self._squares = self._squares * _KEEP + rows * rows
        self._tokens = self._tokens * _KEEP + tokens
        self._whole_s = self._whole_s * _KEEP + round_s + made_s

    @property
    def per_draft(self) -> float:
        """Tokens that a draft must bring to be verified; 0 while a row's time is not known."""
        variance = self._squares / self._weight - (self._rows / self._weight) ** 2 if self._weight else 0.0
        if self._weight < _ENOUGH or variance < _SPREAD:
            return 0.0
        mean = self._rows * self._seconds / self._weight**2
        row_s = (self._products / self._weight - mean) / variance
        return _CAUTION * max(row_s, 0.0) * self._tokens / self._whole_s
