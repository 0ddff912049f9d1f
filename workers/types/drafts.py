"""What a drafter proposes, as everybody but the drafter needs it. Knows no torch."""

from dataclasses import dataclass

from outrider.workers.types.sampling_params import MTP


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
