"""What the engine asks of anything that drafts. A drafter may be absent, and may fail without harm: it only drafts."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from outrider.workers.types.drafts import Drafts
from outrider.workers.types.errors import OutriderError
from outrider.workers.types.round import IntArray, Round, Verdict


class DrafterError(OutriderError):
    """A drafter failed, which costs speed and nothing else: which, and how."""

    def __init__(self, drafter: str, error: Exception) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.drafter = drafter


class Drafter(Protocol):
    """Proposes the tokens that the next round verifies."""

    def draft(self, round: Round, verdict: Verdict, hidden: Tensor) -> Mapping[int, Drafts]:
        """Drafts by sequence id, for the sequences that go on.

        A drafter that pays for each step makes at most `round.draft_steps`; what others make is cut to the sequence's
        ceiling. `hidden` holds the model's states after the final norm of the verdict's accepted rows, sequence by
        sequence, [sum(accepted_rows), hidden], or those of all the round's rows. Called once for every round that has
        sequences, in order, after the scheduler took in the verdict.
        """
        ...

    def forget(self, sequence_ids: IntArray) -> None:
        """Drops what is kept for sequences that ended."""
        ...
