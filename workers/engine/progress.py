"""Whether an engine's rounds end in time. Written by the engine's thread, read by any: it may hang, they do not."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

LEAST_S = 8.0  # a round may take so long, whatever others took; its end is noticed within 10 s, with the probes
TIMES_THE_FORECAST = 20.0
_FADES = 0.99  # a round, so that one slow round does not forgive all later ones
_KEPT = 8  # rounds that a report names


@dataclass(frozen=True, slots=True)
class _Past:
    round_id: int
    rows: int
    seconds: float


class Progress:
    """The forecast of a round is the longest of the last few, in proportion where it has more rows; or the longest of
    late, in proportion to its rows. So the time that a prompt took is no forecast for rounds of a few rows."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None  # when the last round ended, or work came; None: there is no work
        self._current = "between rounds"
        self._rows = 0
        self._longest = _Past(-1, 1, 0.0)
        self._past: deque[_Past] = deque(maxlen=_KEPT)

    def idle(self) -> None:
        """There is nothing to do."""
        self._since = None

    def busy(self) -> None:
        """There may be something to do now."""
        if self._since is None:
            self._since, self._current, self._rows = self._clock(), "between rounds", 0

    def began(self, round_id: int, rows: int) -> None:
        self._current, self._rows = f"in round {round_id} of {rows} rows", rows

    def finished(self, round_id: int, rows: int) -> None:
        now = self._clock()
        past = _Past(round_id, rows, 0.0 if self._since is None else now - self._since)
        faded = self._longest.seconds * _FADES
        self._longest = past if past.seconds >= faded else _Past(self._longest.round_id, self._longest.rows, faded)
        self._past.append(past)
        self._since, self._current = now, "between rounds"

    @property
    def limit_s(self) -> float:
        """For what is under way."""
        return max(LEAST_S, TIMES_THE_FORECAST * self._forecast_s)

    @property
    def _forecast_s(self) -> float:
        longest = self._longest
        by_rows = longest.seconds * self._rows / max(1, longest.rows)
        recent = max((one.seconds * max(1.0, self._rows / max(1, one.rows)) for one in list(self._past)), default=0.0)
        return max(by_rows, recent if self._rows > longest.rows else min(recent, longest.seconds))

    def stall(self) -> str:
        """What hangs, with the rounds before; "" while nothing does."""
        since, limit_s = self._since, self.limit_s
        if since is None or (took_s := self._clock() - since) <= limit_s:
            return ""
        before = ", ".join(f"{one.round_id} ({one.rows} rows, {1000 * one.seconds:.1f} ms)" for one in list(self._past))
        return (
            f"no progress for {took_s:.1f} s {self._current}, and it may take {limit_s:.1f} s; rounds before: "
            f"{before or 'none'}"
        )
