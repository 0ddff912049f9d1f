"""Limits what drafting may lose, and disables it: a token bucket for each class of rounds.

The unit is the plain round: the time of a round without speculation. A round with drafts removes its time and adds its
tokens per sequence. Every round adds `SHARE`. When only the reserve is left, drafting is disabled. The reserve pays for
probes, one every `PROBE_WAIT` rounds. When it is used up, a probe waits until `SHARE` per round has paid for it. So a
class of rounds loses at most its bucket plus 1 %, and drafting is disabled for at most `MAX_WAIT` rounds.
"""

import math
from dataclasses import dataclass

SHARE = 0.01  # plain rounds that each round adds: the largest loss in the long run
# Largest bucket in plain rounds, at batch 1 and at any batch; a new one is half full. Larger batches vary less. With a
# quarter of this, chance disables drafting at batch 1, T=0.8 (simulation: 0.95 of the best)
CAP, LEAST_CAP = 64.0, 32.0
RESERVE = 0.25  # share of a bucket kept for probes: without it drafting resumes after up to 512 rounds
PROBE_COST = 0.32  # plain rounds that a probe may lose: with twice that, drafting resumes three times as late
PROBE_WAIT = 36  # rounds between two probes, so that drafting resumes within 64 rounds of text becoming predictable
PROBE_ROUNDS = 1  # probes when drafting is enabled again: more follow as long as they gain
MAX_WAIT = 512  # most rounds for which drafting is disabled
_IDLE = 4  # consecutive rounds without a draft worth verifying until there is a probe
# Rounds between two measurements of plain rounds are chosen so that these cost PLAIN_SHARE of the time
PLAIN_SHARE, LEAST_BETWEEN, MOST_BETWEEN = 0.01, 16, 512
PLAIN_ROUNDS, PLAIN_SKIPPED = 8, 2  # rounds of a measurement; the first are slower, since CPU caches hold drafter data
RATE = 0.05  # weight of a round in moving averages


@dataclass(slots=True)
class Budget:
    """The budget of one class of rounds."""

    level: float  # plain rounds
    cap: float
    wait: int = 0  # rounds until drafting is enabled again; 0: it is enabled
    probes: int = PROBE_ROUNDS  # rounds left in which at least one draft is verified in any case
    reason: str = ""  # for which drafting is disabled
    speedup: float = 1.0  # over plain rounds, moving average
    _floor: float = 0.0  # drafting is disabled when the level falls to this
    _idle: int = 0  # rounds in a row without a verified draft
    _until_plain: int = 0  # rounds until plain rounds are measured

    @classmethod
    def of(cls, size_class: int) -> "Budget":
        """A new budget. Large batches need less, since their rounds vary less."""
        cap = max(CAP / 2**size_class, LEAST_CAP)
        return cls(cap / 2, cap, _floor=RESERVE * cap)

    @property
    def reserve(self) -> float:
        """Plain rounds that only probes may lose."""
        return RESERVE * self.cap

    @property
    def spare(self) -> float:
        """Plain rounds that may still be lost before drafting is disabled."""
        return self.level - self._floor

    @property
    def enabled(self) -> bool:
        return not self.wait and self.spare > 0.0

    @property
    def plain_due(self) -> bool:
        """Whether it is time to measure plain rounds."""
        return self._until_plain <= 0

    def settle(self, tokens: float, took: float, *, verified: bool, pending: bool) -> None:
        """Accounts for a round: its tokens per sequence, and its estimated time in plain rounds.

        `pending`: drafts were made after it. An empty budget then disables drafting one round later, so that a probe's
        drafts are still verified.
        """
        self.speedup += RATE * (tokens / max(took, 0.1) - self.speedup)
        self.pay(took - tokens - SHARE, verified=verified, pending=pending, won=took <= tokens)

    def pay(self, plain_rounds: float, *, verified: bool, pending: bool = False, won: bool = False) -> None:
        """Removes the loss of a round. `won`: its drafts produced more than they cost."""
        self.level = min(self.level - plain_rounds, self.cap)
        if self.level > self.reserve + PROBE_COST:
            self._floor = self.reserve
        self._until_plain -= 1
        if self._until_plain <= -PLAIN_ROUNDS:  # new sequences or prompts kept interrupting the measurement
            self.measured()
        self._idle = 0 if verified else self._idle + 1
        if self._idle >= _IDLE:
            self.probes, self._idle = PROBE_ROUNDS, 0
        elif verified and not won:  # after a probe that gains, probing continues
            self.probes = max(self.probes - 1, 0)
        if self.spare <= 0.0 and not pending:
            self._disable()

    def measured(self) -> None:
        """Schedules the next measurement of plain rounds, after one that succeeded or was interrupted."""
        between = PLAIN_ROUNDS * max(self.speedup - 1.0, 0.0) / PLAIN_SHARE
        self._until_plain = int(min(max(between, LEAST_BETWEEN), MOST_BETWEEN))

    def skip(self, rounds: int) -> None:
        """Accounts for rounds that ran while drafting was disabled."""
        self.level = min(self.level + SHARE * rounds, self.cap)
        self.speedup += (1.0 - (1.0 - RATE) ** rounds) * (1.0 - self.speedup)
        self.wait = max(self.wait - rounds, 0)
        if not self.wait:
            self.level, self.probes, self.reason = max(self.level, PROBE_COST), PROBE_ROUNDS, ""
            self._floor = min(self.reserve, self.level - PROBE_COST)

    def _disable(self) -> None:
        self.wait = min(max(math.ceil((PROBE_COST - self.level) / SHARE), PROBE_WAIT), MAX_WAIT)
        self.reason, self.probes, self._idle = "drafts cost more than they bring", 0, 0
