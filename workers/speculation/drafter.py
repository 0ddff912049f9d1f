"""What the engine asks of anything that drafts. A drafter may be absent, and may fail without harm: it only drafts."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from torch import Tensor

from outrider.workers.engine.round import IntArray, Round, Verdict
from outrider.workers.sampling_params import MTP


class Draft(NamedTuple):
    """A token proposed, and how sure its drafter is.

    A model is as sure as its score leads over the next best; prompt lookup says how likely the draft is accepted, if
    those before it are.
    """

    token_id: int
    confidence: float
    drafter: str = MTP


class Drafter(Protocol):
    """Proposes the tokens that the next round verifies."""

    def draft(self, round: Round, verdict: Verdict, hidden: Tensor) -> Mapping[int, list[Draft]]:
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
