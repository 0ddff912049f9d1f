"""On the leader, the drafter that other ranks of its stage run too: they are told how deep before it begins."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from outrider.workers.drafting.drafter import Drafter
from outrider.workers.types.drafts import Drafts
from outrider.workers.types.round import IntArray, Round, Verdict


class BroadcastingDrafter:
    """Implements Drafter. What `tell` is given says all that the others need: the verdict, and the draft steps."""

    def __init__(self, drafter: Drafter, tell: Callable[[Verdict], None]) -> None:
        self._drafter, self._tell = drafter, tell

    def draft(self, round: Round, verdict: Verdict, hidden: Tensor) -> Mapping[int, Drafts]:
        self._tell(replace(verdict, draft_steps=round.draft_steps))
        return self._drafter.draft(round, verdict, hidden)

    def forget(self, sequence_ids: IntArray) -> None:
        self._drafter.forget(sequence_ids)
