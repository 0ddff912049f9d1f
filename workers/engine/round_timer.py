"""Where the leader's time goes. Knows no rounds but their order; the loop tells it what it has just done."""

from collections import defaultdict, deque
from collections.abc import Callable


class RoundTimer:
    """Seconds by part of all rounds, and of the round at hand those that the depth policy learns from."""

    def __init__(self, clock: Callable[[], float], *, overlapping: bool) -> None:
        """`overlapping`: several rounds are under way at a time."""
        self.rounds = 0
        self.by_part = defaultdict[str, float](float)
        self.round_s = 0.0  # of the round finished last, from its scheduling until its tokens were out
        self.draft_s = 0.0  # from then until the drafts were made
        self._clock, self._overlapping = clock, overlapping
        self._began_at = deque[float]()  # of the rounds under way, oldest first
        self._drafted_at: float | None = None  # what follows is the next round's time
        self._mark = clock()

    def idle(self) -> None:
        """There is nothing to do: the time until there is belongs to no round."""
        self._drafted_at = None

    def begin(self) -> None:
        """A round is about to be scheduled."""
        self._mark = self._clock()

    def lap(self, part: str) -> None:
        """What was done since the last call was this."""
        now = self._clock()
        self.by_part[part] += now - self._mark
        self._mark = now

    def scheduled(self) -> None:
        """The round is under way."""
        self._began_at.append(self._mark if self._drafted_at is None else self._drafted_at)

    def judged(self) -> float:
        """The oldest round's verdict is there: how many seconds after its scheduling."""
        now = self._clock()
        self.by_part["wait"] += now - self._mark
        self._mark = now
        return now - self._began_at[0]

    def delivered(self) -> None:
        """Its tokens are out."""
        self.lap("commit")
        self.round_s = self._mark - self._began_at.popleft()

    def drafted(self) -> None:
        """The drafts after it are made."""
        delivered = self._mark
        self.lap("draft")
        self.draft_s = self._mark - delivered
        self._drafted_at = None if self._overlapping else self._mark

    def finished(self) -> None:
        """The policy has heard of it."""
        self.lap("depth")
        self.rounds += 1
