"""Measures the leader's time by part of the loop. The loop calls a method after each part."""

from collections import defaultdict, deque
from collections.abc import Callable


class RoundTimer:
    """Total seconds by part of the loop, and the seconds of the last round for the depth policy."""

    def __init__(self, clock: Callable[[], float], *, overlapping: bool) -> None:
        """`overlapping`: several rounds may be in flight."""
        self.rounds = 0
        self.by_part = defaultdict[str, float](float)
        self.round_s = 0.0  # of the last finished round, from its scheduling until its tokens were delivered
        self.draft_s = 0.0  # from then until its drafts were made
        self._clock, self._overlapping = clock, overlapping
        self._began_at = deque[float]()  # of the rounds in flight, oldest first
        self._drafted_at: float | None = None  # start of the next round's time
        self._mark = clock()

    def idle(self) -> None:
        """The engine has no work: the time until it has some counts for no round."""
        self._drafted_at = None

    def begin(self) -> None:
        """Call before a round is scheduled."""
        self._mark = self._clock()

    def lap(self, part: str) -> None:
        """Adds the time since the last call to `part`."""
        now = self._clock()
        self.by_part[part] += now - self._mark
        self._mark = now

    def scheduled(self) -> None:
        """A round is scheduled."""
        self._began_at.append(self._mark if self._drafted_at is None else self._drafted_at)

    def verdict_received(self) -> float:
        """The oldest round's verdict has arrived. Returns the seconds since its scheduling."""
        now = self._clock()
        self.by_part["wait"] += now - self._mark
        self._mark = now
        return now - self._began_at[0]

    def delivered(self) -> None:
        """Its tokens are delivered."""
        self.lap("commit")
        self.round_s = self._mark - self._began_at.popleft()

    def drafted(self) -> None:
        """Its drafts are made."""
        delivered = self._mark
        self.lap("draft")
        self.draft_s = self._mark - delivered
        self._drafted_at = None if self._overlapping else self._mark

    def finished(self) -> None:
        """The depth policy has observed it."""
        self.lap("depth")
        self.rounds += 1
