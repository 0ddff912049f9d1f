"""A drafter's proposal for a sequence. Torch-free."""

from dataclasses import dataclass

from outrider.workers.types.requests.sampling_params import MTP


@dataclass(slots=True)
class Drafts:
    """One drafter's drafts for a sequence, in order; false if empty.

    The confidence of a model's draft is its lead: its score minus the next best. With prompt lookup, it is the
    estimated probability that the draft is accepted if those before it are.
    """

    token_ids: list[int]
    confidences: list[float]
    drafter: str = MTP

    def __len__(self) -> int:
        return len(self.token_ids)

    def first(self, count: int) -> "Drafts":
        """The first `count` drafts."""
        return Drafts(self.token_ids[:count], self.confidences[:count], self.drafter)
