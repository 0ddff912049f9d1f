"""What the engine asks of anything that drafts. A drafter may be absent, and may fail without harm: it only drafts."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from torch import Tensor

from outrider.workers.engine.round import IntArray, Round, Verdict


class Draft(NamedTuple):
    """A token proposed, and how sure its drafter is: by how much its score leads over the next best."""

    token_id: int
    confidence: float


class Drafter(Protocol):
    """Proposes the tokens that the next round verifies."""

    def draft(self, round: Round, verdict: Verdict, hidden: Tensor) -> Mapping[int, list[Draft]]:
        """Drafts by sequence id, at most `round.draft_steps` each, for the sequences that go on.

        `hidden` holds the model's states after the final norm of the verdict's accepted rows, sequence by sequence,
        [sum(accepted_rows), hidden]. Called once for every round that has sequences, in order.
        """
        ...

    def forget(self, sequence_ids: IntArray) -> None:
        """Drops what is kept for sequences that ended."""
        ...
