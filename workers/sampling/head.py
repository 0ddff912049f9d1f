"""The interface of a model's head, for sampler and drafter. Implemented for torch, compiled kernels and GPUs."""

from typing import Protocol

from torch import Tensor

from outrider.workers.types.rounds.round import FloatArray, IntArray


class Head(Protocol):
    """Computes logits and draws tokens from them."""

    def prepare(self, sequence_ids: IntArray, positions: IntArray) -> None:
        """Called before a round runs, with the arguments of the later call of `draw` or `choose`."""
        ...

    def draw(
        self, hidden: Tensor, rows: IntArray, sequence_ids: IntArray, positions: IntArray
    ) -> tuple[Tensor, Tensor]:
        """Logits [n, vocab] in float32 of rows `rows` [n] of `hidden`, and the drawn tokens [n] int64.

        Token i belongs to sequence `sequence_ids[i]`, at absolute position `positions[i]`. On a GPU both results may
        still be computed when this returns.
        """
        logits = self.logits(hidden, rows)
        return logits, self.choose(logits, sequence_ids, positions)

    def draw_with_leads(
        self, hidden: Tensor, rows: IntArray, sequence_ids: IntArray, positions: IntArray
    ) -> tuple[IntArray, FloatArray]:
        """As `draw`, but returns leads instead of logits: each token's score minus the next best, [n].

        For drafting: the tokens are added to the output that the rules of later drafts see.
        """
        ...

    def logits(self, hidden: Tensor, rows: IntArray) -> Tensor:
        """Logits in float32 of rows `rows` [n] of `hidden`: [n, this rank's slice of the vocabulary]."""
        ...

    def choose(self, logits: Tensor, sequence_ids: IntArray, positions: IntArray) -> Tensor:
        """Draws tokens from complete rows of logits [n, vocab], as `draw` does."""
        ...
