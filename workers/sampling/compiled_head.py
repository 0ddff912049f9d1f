"""Head with the compiled kernels: logits and draws in one call."""

import torch
from torch import Tensor

from outrider.kernels.cpu.context import Context
from outrider.kernels.cpu.library import LinearStruct
from outrider.workers.sampling.sequence_starts import SequenceStarts
from outrider.workers.types.rounds.round import FloatArray, IntArray


class CompiledHead:
    """Implements Head."""

    def __init__(self, context: Context, head: LinearStruct, starts: SequenceStarts) -> None:
        self._context, self._head, self._starts = context, head, starts

    def prepare(self, sequence_ids: IntArray, positions: IntArray) -> None:
        """Does nothing."""

    def draw(
        self, hidden: Tensor, rows: IntArray, sequence_ids: IntArray, positions: IntArray
    ) -> tuple[Tensor, Tensor]:
        draws = self._starts.draws(sequence_ids, positions)
        logits, tokens = self._context.sample(self._head, hidden, rows, draws)
        return logits, torch.from_numpy(tokens)

    def draw_with_leads(
        self, hidden: Tensor, rows: IntArray, sequence_ids: IntArray, positions: IntArray
    ) -> tuple[IntArray, FloatArray]:
        draws = self._starts.draws(sequence_ids, positions)
        tokens, leads = self._context.sample_with_leads(self._head, hidden, rows, draws)
        self._starts.write_each(sequence_ids, positions, tokens)
        return tokens, leads

    def logits(self, hidden: Tensor, rows: IntArray) -> Tensor:
        return self._context.linear(self._head, hidden[torch.from_numpy(rows)])

    def choose(self, logits: Tensor, sequence_ids: IntArray, positions: IntArray) -> Tensor:
        return torch.from_numpy(self._context.draw(logits, self._starts.draws(sequence_ids, positions)))
