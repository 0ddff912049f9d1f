"""The module that DeepSpeed wraps: MTP module, frozen embedding and head. Maps a batch to sums by step."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outrider.workers.training.distill.batches import TrainingBatch
from outrider.workers.training.distill.losses import Judge
from outrider.workers.training.distill.module import TrainableMtp


class Drafting(nn.Module):
    """Embedding and head are not parameters: they are never trained, and ZeRO does not partition them."""

    def __init__(self, module: TrainableMtp, embedding: Tensor, head: Tensor, *, depth: int, loss: str) -> None:
        super().__init__()
        self.module = module
        self._embedding, self._depth = embedding, depth
        self._judge = Judge(head, loss)

    def forward(self, token_ids: Tensor, hidden: Tensor, counted: Tensor) -> Tensor:
        """Float32 [depth, 3]: sums of loss, overlap and agreement over the counted starts, by step (see StepSums)."""
        hidden = hidden.to(self._embedding.dtype)
        drafts = self.module.unrolled(
            F.embedding(token_ids, self._embedding), hidden[:, : counted.shape[1]], self._depth
        )
        steps = self._judge.steps(drafts, hidden, counted)
        return torch.stack([torch.stack([sums.loss, sums.overlap, sums.agreement]) for sums in steps])


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Means over starts, by step of the recursion."""

    loss: list[float]
    overlap: list[float]
    agreement: list[float]

    @classmethod
    def of(cls, sums: Tensor, starts: float) -> "Measured":
        """From sums [depth, 3] over `starts` starts."""
        loss, overlap, agreement = (sums / max(starts, 1.0)).T.tolist()
        return cls(loss=loss, overlap=overlap, agreement=agreement)


def weighted(sums: Tensor, decay: float) -> Tensor:
    """The training loss: the steps' sums, each weighted by `decay` times the previous weight."""
    weights = decay ** torch.arange(len(sums), device=sums.device)
    return (sums[:, 0] * weights).sum()


def measure(
    drafting: Callable[[Tensor, Tensor, Tensor], Tensor],
    batches: list[TrainingBatch],
    reduced: Callable[[Tensor], Tensor],
) -> Measured:
    """The means over all of `batches` and ranks; `reduced` sums a tensor over the ranks."""
    totals = torch.zeros(0)
    with torch.no_grad():
        for batch in batches:
            sums = drafting(batch.token_ids, batch.hidden, batch.counted)
            row = torch.cat([sums.flatten(), batch.counted.sum()[None].float()])
            totals = row if not len(totals) else totals + row
    totals = reduced(totals)
    return Measured.of(totals[:-1].view(-1, 3), float(totals[-1]))
