"""What the sampler and the drafter ask of a model, whichever path computes it."""

from typing import NamedTuple, Protocol

from torch import Tensor

from outrider.workers.drafting.pairs import Pairs
from outrider.workers.types.drafts import Drafts
from outrider.workers.types.round import FloatArray, IntArray


class Head(Protocol):
    """The model's head, and the draws from its logits."""

    def draw(
        self, hidden: Tensor, rows: IntArray, sequence_ids: IntArray, positions: IntArray
    ) -> tuple[Tensor, IntArray]:
        """Logits [n, vocab] in float32 of rows `rows` [n] of `hidden`, and the token that each draws [n].

        Token i belongs to sequence `sequence_ids[i]` and stands at absolute position `positions[i]`.
        """
        ...

    def draw_with_leads(
        self, hidden: Tensor, rows: IntArray, sequence_ids: IntArray, positions: IntArray
    ) -> tuple[IntArray, FloatArray]:
        """As `draw`, but in place of the logits by how much each token's score leads over the next best, [n].

        For drafting: what later drafts are drawn by takes these tokens for said.
        """
        ...

    def logits(self, hidden: Tensor, rows: IntArray) -> Tensor:
        """Logits in float32 of rows `rows` [n] of `hidden`: [n, slice of the vocabulary that this rank has]."""
        ...

    def choose(self, logits: Tensor, sequence_ids: IntArray, positions: IntArray) -> IntArray:
        """The tokens that whole rows of logits [n, vocab] draw, as `draw`."""
        ...


class Wanted(NamedTuple):
    """The drafts that are to be made after some pairs."""

    entries: IntArray  # [n] of the pairs: whose last pair each draft follows
    depths: IntArray  # [n] how many at most
    steps: int | None = None  # the largest depth where other data groups draft beside this one: all go as many
    patience: FloatArray | None = None  # [n, 7] when drafting ends before: patience.py


class DraftModel(Protocol):
    """The MTP modules or a separate model, with its cache and a head."""

    def draft(self, pairs: Pairs, wanted: Wanted) -> list[Drafts]:
        """Feeds all `pairs`; then drafts, for each entry that is wanted.

        Of ranks with the same pairs only the first is sure of its drafts' confidence.
        """
        ...

    def forget(self, sequence_ids: IntArray) -> None:
        """Drops what is kept of sequences beside the cache."""
        ...


class ModuleDraftModel(DraftModel, Protocol):
    """The MTP modules, which others may replace."""

    @property
    def module(self) -> object: ...

    def use(self, module: object) -> None:
        """Drafts with others from now on; they have these ones' cache. For the engine's thread, between rounds."""
        ...
