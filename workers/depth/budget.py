"""How much drafting may lose, and when it is disabled: one token bucket for each class of rounds.

Losses are counted in plain rounds: the time of a round without speculation. A round with drafts pays its time and
earns its tokens; every round earns a hundredth. A bucket that is empty but for its reserve disables drafting. The
reserve pays for probes: every `PROBE_WAIT` rounds while it lasts, and then as often as a hundredth of a round pays for
them. So a class of rounds never loses more than its bucket and 1 %, and is never disabled for more than `MAX_WAIT`.
"""

import math
from dataclasses import dataclass

SHARE = 0.01  # of a plain round, what each round earns: the most that may be lost in the long run
# Plain rounds in a full bucket, at batch 1 and at any; a new one holds half. The more sequences share a round, the
# less luck is in it. With a quarter of this, luck disables drafting at batch 1, T=0.8 (simulation: 0.95 of the best)
CAP, LEAST_CAP = 64.0, 32.0
RESERVE = 0.25  # of a bucket, kept for probes: without it drafting resumes after up to 512 rounds
PROBE_COST = 0.32  # plain rounds after whose loss a probe ends: twice that makes it resume three times as late
PROBE_WAIT = 36  # rounds between two probes, so that drafting resumes within 64 rounds of text becoming predictable
PROBE_ROUNDS = 1  # probes when drafting is enabled again: a probe whose drafts pay goes on by itself
MAX_WAIT = 512  # rounds that drafting is disabled for at most
_IDLE = 4  # rounds in a row without any draft worth verifying, after which there is a probe
# Rounds between two measurements of plain rounds: so many that these cost PLAIN_SHARE of a plain round in each round
PLAIN_SHARE, LEAST_BETWEEN, MOST_BETWEEN = 0.01, 16, 512
PLAIN_ROUNDS, PLAIN_SKIPPED = 8, 2  # rounds of a measurement; its first ones are slower: caches are still the drafter's
RATE = 0.05  # a round's weight in what is usual, and in the figures shown


@dataclass(slots=True)
class Budget:
    """Of one class of rounds."""

    level: float  # plain rounds
    cap: float
    wait: int = 0  # rounds until drafting is enabled again; 0: it is enabled
    probes: int = PROBE_ROUNDS  # probes left: rounds with drafts that are verified in any case
    reason: str = ""  # why it is disabled
    speedup: float = 1.0  # over plain rounds, moving average
    _floor: float = 0.0  # drafting is disabled when the level falls to this
    _idle: int = 0  # rounds in a row without a verified draft
    _until_plain: int = 0  # rounds until plain rounds are measured

    @classmethod
    def of(cls, size_class: int) -> "Budget":
        """A new one. Luck matters less where many sequences share a round, so less of it is needed."""
        cap = max(CAP / 2**size_class, LEAST_CAP)
        return cls(cap / 2, cap, _floor=RESERVE * cap)

    @property
    def reserve(self) -> float:
        """Plain rounds that only probes may lose."""
        return RESERVE * self.cap

    @property
    def spare(self) -> float:
        """Plain rounds that may be lost until drafting is disabled."""
        return self.level - self._floor

    @property
    def enabled(self) -> bool:
        return not self.wait and self.spare > 0.0

    @property
    def plain_due(self) -> bool:
        """Whether plain rounds are to be measured."""
        return self._until_plain <= 0

    def settle(self, tokens: float, took: float, *, verified: bool, pending: bool) -> None:
        """A round brought each sequence so many tokens and should take so many plain rounds.

        `pending`: drafts were made after it, and what they bring is booked before an empty bucket disables drafting.
        Otherwise a probe whose drafts take all that there is would never learn what becomes of them.
        """
        self.speedup += RATE * (tokens / max(took, 0.1) - self.speedup)
        self.pay(took - tokens - SHARE, verified=verified, pending=pending, won=took <= tokens)

    def pay(self, plain_rounds: float, *, verified: bool, pending: bool = False, won: bool = False) -> None:
        """So much was lost in a round. `won`: its drafts are known to have brought more than they took."""
        self.level = min(self.level - plain_rounds, self.cap)
        if self.level > self.reserve + PROBE_COST:
            self._floor = self.reserve
        self._until_plain -= 1
        if self._until_plain <= -PLAIN_ROUNDS:  # sequences or prompts come too often
            self.measured()
        self._idle = 0 if verified else self._idle + 1
        if self._idle >= _IDLE:
            self.probes, self._idle = PROBE_ROUNDS, 0
        elif verified and not won:  # a probe that wins goes on
            self.probes = max(self.probes - 1, 0)
        if self.spare <= 0.0 and not pending:
            self._disable()

    def measured(self) -> None:
        """Plain rounds were measured, or others came between, and drafting goes on all the same."""
        between = PLAIN_ROUNDS * max(self.speedup - 1.0, 0.0) / PLAIN_SHARE
        self._until_plain = int(min(max(between, LEAST_BETWEEN), MOST_BETWEEN))

    def skip(self, rounds: int) -> None:
        """So many rounds passed while drafting was disabled."""
        self.level = min(self.level + SHARE * rounds, self.cap)
        self.speedup += (1.0 - (1.0 - RATE) ** rounds) * (1.0 - self.speedup)
        self.wait = max(self.wait - rounds, 0)
        if not self.wait:
            self.level, self.probes, self.reason = max(self.level, PROBE_COST), PROBE_ROUNDS, ""
            self._floor = min(self.reserve, self.level - PROBE_COST)

    def _disable(self) -> None:
        self.wait = min(max(math.ceil((PROBE_COST - self.level) / SHARE), PROBE_WAIT), MAX_WAIT)
        self.reason, self.probes, self._idle = "drafts cost more than they bring", 0, 0
