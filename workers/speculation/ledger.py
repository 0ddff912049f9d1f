"""The floor under speculation: how much time it may still lose against not speculating. Pure.

A ledger in units of undrafted rounds. It earns a small share of every token's undrafted time, gains what drafts save
and pays what they cost, up to a cap; while it is empty nobody drafts. So over any stretch of rounds, however acceptance
behaves, what was lost is at most the cap, that share of the stretch, and the round that emptied it.
"""

SHARE = 0.01  # of the undrafted time that may be lost
FIRST, CAP = 12.0, 24.0  # undrafted rounds: what chance may take from a text that pays well, and soon gives back
_RESUME = 4.0  # to be earned before speculation is tried again: with less nothing is learned of it


class Ledger:
    """What is left to lose."""

    def __init__(self, share: float = SHARE, cap: float = CAP) -> None:
        self._share, self._cap = share, cap
        self.level = min(FIRST, cap)
        self.stopped = False
        self.stops = 0
        self._resumed_after = 0

    def earn(self, worth: float) -> None:
        """`worth` rounds went by that speculation had no part in."""
        self.level = min(self.level + self._share * worth, self._cap)
        if self.stopped:
            self.stopped = self.level < _RESUME

    def settle(self, worth: float, took: float) -> None:
        """A round brought each sequence the tokens of `worth` undrafted rounds, and took the time of `took`."""
        self.level = min(self.level + self._share * worth + worth - took, self._cap)
        if self.stopped:
            self.stopped = self.level < _RESUME
        elif self.level <= 0.0:
            self.stopped = True
            self.stops += 1

    def resumed(self) -> bool:
        """Whether a stop is over, once for each."""
        if self.stopped or self.stops == self._resumed_after:
            return False
        self._resumed_after = self.stops
        return True

    def affords(self, rounds: float) -> bool:
        """Whether so much may be risked now."""
        return not self.stopped and self.level > rounds
