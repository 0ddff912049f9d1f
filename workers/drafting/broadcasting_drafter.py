"""The leader's drafter if other ranks of its stage draft too: sends them the verdict before it drafts."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from outrider.workers.drafting.drafter import Drafter
from outrider.workers.types.rounds.drafts import Drafts
from outrider.workers.types.rounds.round import IntArray, Round, Verdict


class BroadcastingDrafter:
    """Implements Drafter. `send` gets the verdict with the draft steps, which is all that the other ranks need."""

    def __init__(self, drafter: Drafter, send: Callable[[Verdict], None]) -> None:
        self._drafter, self._send = drafter, send

    def draft(self, round: Round, verdict: Verdict, hidden: Tensor) -> Mapping[int, Drafts]:
        self._send(replace(verdict, draft_steps=round.draft_steps))
        return self._drafter.draft(round, verdict, hidden)

    def forget(self, sequence_ids: IntArray) -> None:
        self._drafter.forget(sequence_ids)
