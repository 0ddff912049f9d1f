"""What drafting costs, in tokens: the time that a verified row or a drafter's steps take, at the present speed.

One currency for every drafter, so that their drafts can be compared. Pure: seconds are given to it.
"""

_KEEP = 0.98  # of what was seen, when a round is added
_CLIP = 2.0  # a round counts as at most this many times the mean: what disturbs a round makes it slower
_ENOUGH, _SPREAD = 30.0, 0.2  # rounds, and variance of their rows, before a row's time is known
_FIRST_ROW_SHARE = 0.04  # of a round, that a row adds before that
_FIRST_STEP_SHARE = 0.15  # of a round, that a step of drafting takes before it was measured
_STEP_RATE = 0.1  # weight of a measurement after the first


class DrafterPrices:
    """Learned from decoding rounds: a line through their seconds by rows, and each drafter's seconds by its steps."""

    def __init__(self) -> None:
        self._weight = self._rows = self._seconds = self._products = self._squares = 0.0
        self._tokens = self._whole_s = 0.0
        self._drafting: dict[str, dict[int, float]] = {}  # drafter -> steps -> seconds

    def observe_round(self, rows: int, tokens: int, round_s: float, whole_s: float) -> None:
        """A decoding round of `rows` rows that the stages computed in `round_s`, and that emitted `tokens`.

        `whole_s`: from verdict to verdict, whatever else was done in that time, the drafts not least.
        """
        if self._weight:
            round_s = min(round_s, _CLIP * self._seconds / self._weight)
            whole_s = min(whole_s, _CLIP * self._whole_s / self._weight)
        self._weight = self._weight * _KEEP + 1
        self._rows = self._rows * _KEEP + rows
        self._seconds = self._seconds * _KEEP + round_s
        self._products = self._products * _KEEP + rows * round_s
        self._squares = self._squares * _KEEP + rows * rows
        self._tokens = self._tokens * _KEEP + tokens
        self._whole_s = self._whole_s * _KEEP + whole_s

    def observe_drafting(self, drafter: str, steps: int, seconds: float) -> None:
        """A call of `drafter` that made up to `steps` drafts for each sequence. The fastest of the first counts."""
        known = self._drafting.setdefault(drafter, {})
        before = known.get(steps, seconds)
        known[steps] = before + _STEP_RATE * (min(seconds, _CLIP * before) - before) if seconds > before else seconds

    @property
    def tokens_per_second(self) -> float:
        return self._tokens / self._whole_s if self._whole_s > 0 else 0.0

    def of_row(self) -> float:
        """Tokens that a further row must bring to be worth verifying."""
        return self._row_s() * self.tokens_per_second

    def of_drafting(self, drafter: str, steps: int) -> float:
        """Tokens that `steps` steps must bring to be worth making, for all sequences of a round together."""
        return self._drafting_s(drafter, steps) * self.tokens_per_second if steps else 0.0

    def _row_s(self) -> float:
        if not self._weight:
            return 0.0
        mean_s, mean_rows = self._seconds / self._weight, self._rows / self._weight
        variance = self._squares / self._weight - mean_rows**2
        if self._weight < _ENOUGH or variance < _SPREAD:
            return _FIRST_ROW_SHARE * mean_s
        return max((self._products / self._weight - mean_rows * mean_s) / variance, 0.0)

    def _drafting_s(self, drafter: str, steps: int) -> float:
        """Of steps that were not tried: in proportion to the nearest that were."""
        known = self._drafting.get(drafter)
        if not known:
            return _FIRST_STEP_SHARE * steps * self._seconds / self._weight if self._weight else 0.0
        if steps in known:
            return known[steps]
        nearest = min(known, key=lambda tried: abs(tried - steps))
        return known[nearest] * (1 + steps) / (1 + nearest)
