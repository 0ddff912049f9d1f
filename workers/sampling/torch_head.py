"""Head in PyTorch: the specification of the compiled path."""

import torch
from torch import Tensor

from outrider.workers.model.deepseek import Stage
from outrider.workers.sampling.head import Head
from outrider.workers.sampling.sampling import sample, sample_with_leads
from outrider.workers.sampling.sequence_starts import SequenceStarts
from outrider.workers.types.rounds.round import FloatArray, IntArray, ints


class TorchHead(Head):
    """Inherits `draw` from Head."""

    def __init__(self, stage: Stage, starts: SequenceStarts) -> None:
        self._stage, self._starts = stage, starts

    def prepare(self, sequence_ids: IntArray, positions: IntArray) -> None:
        """Does nothing."""

    @torch.inference_mode()
    def choose(self, logits: Tensor, sequence_ids: IntArray, positions: IntArray) -> Tensor:
        return sample(logits, self._starts.rows(sequence_ids, positions))

    @torch.inference_mode()
    def draw_with_leads(
        self, hidden: Tensor, rows: IntArray, sequence_ids: IntArray, positions: IntArray
    ) -> tuple[IntArray, FloatArray]:
        logits = self._stage.logits(hidden[torch.from_numpy(rows)])
        tokens, leads = sample_with_leads(logits, self._starts.rows(sequence_ids, positions))
        drawn = ints(tokens.cpu().numpy())
        self._starts.write_each(sequence_ids, positions, drawn)
        return drawn, leads.cpu().numpy()

    @torch.inference_mode()
    def logits(self, hidden: Tensor, rows: IntArray) -> Tensor:
        return self._stage.logits(hidden[torch.from_numpy(rows)])
