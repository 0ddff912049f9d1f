"""What is known of a lane's next round, and for how many rounds that may hold without a look at them. Pure."""

import math
from dataclasses import dataclass, field

from outrider.workers.speculation.gain import size_class
from outrider.workers.speculation.known_times import Shape
from outrider.workers.types.round import RUNNING, Round, Verdict
from outrider.workers.types.round_time import RoundTime

_NOTHING = Shape(0, 0, 0.0, 0.0)
# Undrafted rounds that may seem lost in rounds that were not looked at: a look takes a good part of a short one too
_LEAST_LOST, _MOST_LOST = 2.0, 4.0
_FIRST_HELD = 4  # rounds
_LOOKED_AT_ALONE = 24  # sequences: so many beyond the first, begun, and one more round goes by between two looks


@dataclass(slots=True)
class Passed:
    """Rounds that were not looked at: what they brought each sequence, and took, in undrafted rounds."""

    rounds: int = 0
    worth: float = 0.0
    took: float = 0.0


@dataclass(slots=True)
class LanePlan:
    """Of one lane. Set anew whenever depths are, and bent to other sequences in between."""

    plain: Shape = _NOTHING  # its next round without drafts
    undrafted_s: float = 0.0  # what that would take; 0: unknown
    draft_s: float = 0.0  # what its drafts took to make
    holds: int = 1  # rounds
    lost: float = 0.0  # undrafted rounds, of late, since depths were set
    may_lose: float = _MOST_LOST  # of these
    heat: int = 0  # of the hottest that lived
    own: bool = True  # all its sequences draft as they are told to
    bends: bool = False  # drafts pay: it may hold where about as many sequences decode as there were
    most: float = math.inf  # undrafted rounds that one with drafts counts as at most
    heard: int = 0  # rounds since then
    passed: Passed = field(default_factory=Passed)  # of these, that were not looked at
    ended: list[int] = field(default_factory=list)  # sequences that ended since then

    def renew(self, plain: Shape, undrafted_s: float, left: float = _MOST_LOST) -> None:
        """Depths are about to be set, for rounds like `plain`. `left`: undrafted rounds that may be lost in all."""
        self.plain, self.undrafted_s, self.lost = plain, undrafted_s, 0.0
        self.heard = 0
        self.may_lose = min(max(left, _LEAST_LOST), _MOST_LOST)

    def hold(self, most: int) -> None:
        """They may hold for `most` rounds, if that has proved right for half as many, or is few. 1: the next alone."""
        if most == 1:
            self.holds = 1
            return
        least = -(-(self.plain.sequences - 1) // _LOOKED_AT_ALONE) + 1
        self.holds = min(max(2 * self.holds, 2 * least, _FIRST_HELD), max(most, least))

    def affords(self, round: Round, verdict: Verdict, took_s: float, undrafted_s: float) -> bool:
        """Whether rounds with this one have not cost too much. `undrafted_s`: as pass_over has it; 0: it is unknown."""
        if undrafted_s:
            self.lost = max(self.lost + took_s / undrafted_s - len(verdict.token_ids) / round.sequences, 0.0)
        return self.lost < self.may_lose or not self.lost

    def is_like(self, round: Round) -> bool:
        """Whether as many decode in the round as were planned for, and it holds nothing else."""
        return round.sequences == self.plain.sequences and decodes(round)

    def bends_to(self, sequences: int, heat: int) -> bool:
        """Whether so many may take the place of those planned for, the hottest of that heat."""
        if not self.bends or not sequences or heat != self.heat:
            return False
        return size_class(sequences) == size_class(self.plain.sequences)

    def resized(self, sequences: int) -> Shape:
        """Its next round without drafts, of so many."""
        context = self.plain.context * sequences / self.plain.sequences
        return Shape(sequences, sequences, context, context)

    def bend(self, plain: Shape, undrafted_s: float) -> None:
        """It holds for rounds like `plain` from now on, some of whose sequences it knows nothing of."""
        self.plain, self.undrafted_s, self.own = plain, undrafted_s, False

    def pass_over(self, round: Round, verdict: Verdict, took_s: float, undrafted_s: float) -> None:
        """A round like the plan's is not looked at. `undrafted_s`: what it would have taken without drafts."""
        passed = self.passed
        passed.rounds += 1
        passed.worth += len(verdict.token_ids) / round.sequences
        passed.took += min(took_s / undrafted_s, self.most)

    def take_ended(self) -> list[int]:
        """Sequences that ended since the last call."""
        ended, self.ended = self.ended, []
        return ended

    def take_passed(self) -> Passed:
        """Those that were, since the last call."""
        passed, self.passed = self.passed, Passed()
        return passed

    def time_of(self, round: Round, round_s: float) -> RoundTime:
        """What a round took with its drafts, and would have taken without, as modelled; unknown with prompt chunks."""
        if not self.undrafted_s or not decodes(round):
            return RoundTime()
        return RoundTime(self.draft_s + round_s, self.undrafted_s)


def going_on(round: Round, verdict: Verdict) -> int:
    """How many sequences decode after it."""
    ends = zip(round.sample_counts.tolist(), verdict.finish.tolist(), strict=True)
    return sum([count > 0 and finish == RUNNING for count, finish in ends])


def decodes(round: Round) -> bool:
    """Whether no prompt chunk is in it."""
    return bool(len(round.token_ids) == sum(round.sample_counts.tolist()))
