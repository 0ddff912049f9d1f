"""What the sampler and the drafter ask of a model's head, whichever path computes it."""

from typing import Protocol

from torch import Tensor

from outrider.workers.types.round import FloatArray, IntArray


class Head(Protocol):
    """The model's head, and the draws from its logits."""

    def prepare(self, sequence_ids: IntArray, positions: IntArray) -> None:
        """Called before a round runs, with what `draw` or `choose` will be called with after it."""
        ...

    def draw(
        self, hidden: Tensor, rows: IntArray, sequence_ids: IntArray, positions: IntArray
    ) -> tuple[Tensor, Tensor]:
        """Logits [n, vocab] in float32 of rows `rows` [n] of `hidden`, and the token that each draws [n] int64.

        Token i belongs to sequence `sequence_ids[i]` and stands at absolute position `positions[i]`. On a GPU the host
        does not wait for either.
        """
        logits = self.logits(hidden, rows)
        return logits, self.choose(logits, sequence_ids, positions)

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

    def choose(self, logits: Tensor, sequence_ids: IntArray, positions: IntArray) -> Tensor:
        """The tokens that whole rows of logits [n, vocab] draw, as `draw`."""
        ...
