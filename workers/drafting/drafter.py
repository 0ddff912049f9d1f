"""The interface of drafters. A drafter may be absent or fail without any effect on the output text."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from outrider.workers.types.errors import OutriderError
from outrider.workers.types.rounds.drafts import Drafts
from outrider.workers.types.rounds.round import IntArray, Round, Verdict


class DrafterError(OutriderError):
    """A drafter failed, which only reduces speed. Has the drafter's name and the original error's text."""

    def __init__(self, drafter: str, error: Exception) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.drafter = drafter


class Drafter(Protocol):
    """Proposes the tokens that the next round verifies."""

    def draft(self, round: Round, verdict: Verdict, hidden: Tensor) -> Mapping[int, Drafts]:
        """Drafts by sequence id, for the sequences that continue.

        Models make at most `round.draft_steps` drafts; other drafters' drafts are cut to the sequence's limit. `hidden`
        holds the hidden states after the final norm, of the accepted rows, [sum(accepted_rows), hidden], or of all rows
        of the round. Called in order, once for every round that has sequences, after the scheduler's commit.
        """
        ...

    def forget(self, sequence_ids: IntArray) -> None:
        """Drops the state of ended sequences."""
        ...
