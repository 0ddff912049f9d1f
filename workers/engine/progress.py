"""Detects rounds that hang. Written by the engine's thread; read by other threads, since that one may be blocked."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

LEAST_S = 8.0  # smallest limit of a round; with the interval of health probes, a stall is found within 10 s
TIMES_THE_FORECAST = 20.0
_DECAY = 0.99  # decay per round of the longest time, so that one slow round does not raise the limit for ever
_KEPT = 8  # rounds that a report lists


@dataclass(frozen=True, slots=True)
class _Past:
    round_id: int
    rows: int
    seconds: float


class Progress:
    """Forecasts a round's time from recent rounds: scaled up if it has more rows, but not scaled down.

    The longest round is remembered longer, and scaled both ways. So a long prompt does not raise the limit of decoding.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None  # end of the last round, or arrival of work; None: there is no work
        self._current = "between rounds"
        self._rows = 0
        self._longest = _Past(-1, 1, 0.0)
        self._past: deque[_Past] = deque(maxlen=_KEPT)

    def idle(self) -> None:
        """The engine has no work."""
        self._since = None

    def busy(self) -> None:
        """The engine may have work."""
        if self._since is None:
            self._since, self._current, self._rows = self._clock(), "between rounds", 0

    def began(self, round_id: int, rows: int) -> None:
        self._current, self._rows = f"in round {round_id} of {rows} rows", rows

    def finished(self, round_id: int, rows: int) -> None:
        now = self._clock()
        past = _Past(round_id, rows, 0.0 if self._since is None else now - self._since)
        faded = self._longest.seconds * _DECAY
        self._longest = past if past.seconds >= faded else _Past(self._longest.round_id, self._longest.rows, faded)
        self._past.append(past)
        self._since, self._current = now, "between rounds"

    @property
    def limit_s(self) -> float:
        """Longest time that the present round may take."""
        return max(LEAST_S, TIMES_THE_FORECAST * self._forecast_s)

    @property
    def _forecast_s(self) -> float:
        longest = self._longest
        by_rows = longest.seconds * self._rows / max(1, longest.rows)
        recent = max((one.seconds * max(1.0, self._rows / max(1, one.rows)) for one in list(self._past)), default=0.0)
        return max(by_rows, recent if self._rows > longest.rows else min(recent, longest.seconds))

    def stall(self) -> str:
        """A report on the stalled round and those before it; "" if none is stalled."""
        since, limit_s = self._since, self.limit_s
        if since is None or (took_s := self._clock() - since) <= limit_s:
            return ""
        before = ", ".join(f"{one.round_id} ({one.rows} rows, {1000 * one.seconds:.1f} ms)" for one in list(self._past))
        return (
            f"no progress for {took_s:.1f} s {self._current}, limit {limit_s:.1f} s; rounds before: {before or 'none'}"
        )
