"""What the engine asks of anything that drafts. A drafter may be absent, and may fail without harm: it only drafts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from outrider.workers.engine.round import IntArray, Round, Verdict
from outrider.workers.sampling_params import MTP


@dataclass(slots=True)
class Drafts:
    """What one drafter proposes for a sequence, in order; false if that is nothing.

    A model is as sure of a draft as its score leads over the next best; prompt lookup says how likely it is accepted,
    if those before it are.
    """

    token_ids: list[int]
    confidences: list[float]
    drafter: str = MTP

    def __len__(self) -> int:
        return len(self.token_ids)

    def first(self, count: int) -> "Drafts":
        """The leading ones."""
        return Drafts(self.token_ids[:count], self.confidences[:count], self.drafter)


class Drafter(Protocol):
    """Proposes the tokens that the next round verifies."""

    def draft(self, round: Round, verdict: Verdict, hidden: Tensor) -> Mapping[int, Drafts]:
        """Drafts by sequence id, for the sequences that go on.

        A drafter that pays for each step makes at most `round.draft_steps`; what others make is cut to the sequence's
        ceiling. `hidden` holds the model's states after the final norm of the verdict's accepted rows, sequence by
        sequence, [sum(accepted_rows), hidden]. Called once for every round that has sequences, in order, after the
        scheduler took in the verdict.
        """
        ...

    def forget(self, sequence_ids: IntArray) -> None:
        """Drops what is kept for sequences that ended."""
        ...
