"""Drafts of sequences whose depth is fixed. Nothing is decided of them, but they may tell that a drafter is broken.

Pure counting.
"""

from outrider.workers.speculation.acceptance import Kind, Made
from outrider.workers.speculation.alarms import Alarms
from outrider.workers.speculation.auto_depth import Outcome
from outrider.workers.types.drafts import Drafts
from outrider.workers.types.round import RUNNING, Round, Verdict
from outrider.workers.types.sampling_params import LOOKUP


class FixedDrafts:
    """Of one replica. What was looked up is no model's, and tells nothing."""

    def __init__(self, alarms: Alarms) -> None:
        self._alarms = alarms
        self._heats: dict[int, int] = {}  # by sequence, see acceptance.Kind
        self._made: dict[int, Made] = {}  # by sequence: to be verified next
        self._turn = 0

    def __len__(self) -> int:
        return len(self._heats)

    def meet(self, sequence_id: int, temperature: float) -> None:
        """A sequence of fixed depth is there."""
        if sequence_id not in self._heats:
            self._heats[sequence_id] = Kind.of("", temperature).heat

    def made(self, sequence_id: int, drafts: Drafts) -> None:
        """A sequence's next round verifies these."""
        heat = self._heats.get(sequence_id)
        if heat is not None and drafts and drafts.drafter != LOOKUP:
            self._made[sequence_id] = Made(sequence_id, Kind(drafts.drafter, heat), drafts.confidences)

    def observe(self, round: Round, verdict: Verdict) -> list[str]:
        """What the drafts of one of the round's sequences, in turn, say to be wrong."""
        if not self._made:
            return []
        ids = round.sequence_ids.tolist()
        made = {place: self._made.pop(each) for place, each in enumerate(ids) if each in self._made}
        if not made:
            return []
        self._turn += 1
        place = list(made)[self._turn % len(made)]
        became = Outcome(
            ids[place],
            verified=int(round.sample_counts[place]) - 1,
            accepted=int(verdict.drafts_accepted[place]),
            finished=int(verdict.finish[place]) != RUNNING,
            gap=int(round.followed_from[place]) > 1,
        )
        if became.judged <= 0:  # dropped before they were verified
            return []
        return self._alarms.judged(made[place], became.judged, became.accepted, gap=became.gap)

    def forget(self, sequence_id: int) -> None:
        """It ended."""
        self._heats.pop(sequence_id, None)
        self._made.pop(sequence_id, None)
