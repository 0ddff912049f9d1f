"""The floor under speculation: how much time it may still lose against not speculating. Pure.

A ledger in units of undrafted rounds. It earns a small share of every token's undrafted time, gains what drafts save
and pays what they cost, up to a cap; while it is empty nobody drafts. So over any stretch of the rounds that it counts,
however acceptance behaves, what was lost is at most the cap, that share of the stretch, and the rounds that emptied it
before a look.
"""

import math

SHARE = 0.010  # of the undrafted time that may be lost
CAP = 24.0  # undrafted rounds: what chance may take from a text that pays well, and soon gives back
# Of these at first, by one sequence and by any number: twice as many tell as much in half the time
_FIRST, _LEAST = 24.0, 1.5
# To be earned by one sequence before speculation is tried again, and by any number: with less nothing is learned of it
_RESUME, _LEAST_RESUMED = 4.0, 1.0
_MEASURING = 0.005  # of the time, what may knowingly be lost to measuring
_MOST_CREDIT, _FIRST_CREDIT = 4.0, 1.0  # undrafted rounds; at first, by any number; by one as much as at most


class Ledger:
    """What is left to lose, and how much of it to measuring."""

    def __init__(self, size: int = 0, share: float = SHARE, cap: float = CAP) -> None:
        """`size`: the class of the numbers of sequences, see gain.size_class."""
        self._share, self._cap = share, cap
        self.level = min(max(_FIRST * math.exp2(-size), _LEAST), cap)
        self._resume = max(_RESUME * math.exp2(-size / 2), _LEAST_RESUMED)
        self._credit = max(_MOST_CREDIT * math.exp2(-size / 2), _FIRST_CREDIT)
        self.stopped = False

    def earn(self, worth: float) -> None:
        """`worth` rounds went by that speculation had no part in."""
        self.level = min(self.level + self._share * worth, self._cap)
        self.refund(_MEASURING * worth)
        if self.stopped:
            self.stopped = self.level < self._resume

    def settle(self, worth: float, took: float) -> None:
        """A round brought each sequence the tokens of `worth` undrafted rounds, and took the time of `took`."""
        self.level = min(self.level + self._share * worth + worth - took, self._cap)
        self.refund(_MEASURING * took)
        if self.stopped:
            self.stopped = self.level < self._resume
        elif self.level <= 0.0:
            self.stopped = True

    def pay(self, rounds: float) -> None:
        """So much was lost beside rounds that are settled. More than there is is forgotten, and all in a stop."""
        if not self.stopped:
            self.level = max(self.level - rounds, 0.0)
            self.stopped = self.level <= 0.0

    def affords(self, rounds: float) -> bool:
        """Whether so much may be risked now."""
        return not self.stopped and self.level > rounds

    def affords_to_measure(self, loss: float) -> bool:
        """Whether so much may be lost to measuring now. What is dearer than all that may be saved for it takes that."""
        return min(loss, _MOST_CREDIT) <= self._credit

    def until_affords_to_measure(self, loss: float) -> int:
        """How many rounds it takes to earn that, if nothing is lost before."""
        return math.ceil(max(min(loss, _MOST_CREDIT) - self._credit, 0.0) / _MEASURING)

    def spend(self, loss: float) -> bool:
        """Takes `loss` from what may be lost to measuring, if that is left."""
        if not self.affords_to_measure(loss):
            return False
        self._credit -= min(loss, _MOST_CREDIT)
        return True

    def refund(self, gain: float) -> None:
        """What was measured brought something after all."""
        self._credit = min(self._credit + gain, _MOST_CREDIT)
