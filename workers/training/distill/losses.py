"""Compares a drafter's distributions with the model's, step by step, and estimates its acceptance.

Logits are computed in chunks of rows, and again in the backward pass, so [batch, vocabulary] is never in memory.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_VALUES = 1 << 26  # logits at once


def kl_divergence(draft: Tensor, target: Tensor) -> Tensor:
    """KL(target || draft) of log probabilities [rows, vocab], nats: [rows]."""
    return F.kl_div(draft, target, reduction="none", log_target=True).sum(-1)


def total_variation(draft: Tensor, target: Tensor) -> Tensor:
    """Half of the L1 distance of log probabilities [rows, vocab]: [rows]. One less what rejection sampling accepts."""
    return (draft.exp() - target.exp()).abs().sum(-1) / 2


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"kl": kl_divergence, "tv": total_variation}


@dataclass(frozen=True, slots=True)
class StepSums:
    """Sums of one recursion step over the counted starts: the loss, and two measures of acceptance."""

    loss: Tensor
    overlap: Tensor  # probability mass shared by draft and target: acceptance at T = 1
    agreement: Tensor  # both have the same most likely token: acceptance at T = 0


class Judge:
    """Compares drafts with the target's distribution, using the frozen head for both."""

    def __init__(self, head: Tensor, loss: str) -> None:
        """`head` [vocab, hidden]; `loss` is one of LOSSES."""
        self._head, self._loss = head, LOSSES[loss]
        self.rows_at_once = max(1, CHUNK_VALUES // head.shape[0])

    def steps(self, drafts: Iterable[Tensor], truth: Tensor, counted: Tensor) -> Iterator[StepSums]:
        """`drafts` [batch, n, hidden] by step; `truth` [batch, n + depth, hidden] are the model's states.

        Of start i, step j is compared with the state at i + j. `counted` [batch, n] bool: the starts that count.
        """
        kept = counted.flatten()
        for step, states in enumerate(drafts, start=1):
            wanted = truth[:, step : step + states.shape[1]]
            yield self._sums(states.flatten(0, 1)[kept], wanted.flatten(0, 1)[kept])

    def _sums(self, drafts: Tensor, truth: Tensor) -> StepSums:
        sums = torch.zeros(3, device=drafts.device)
        for part in zip(torch.split(drafts, self.rows_at_once), torch.split(truth, self.rows_at_once), strict=True):
            sums = sums + torch.as_tensor(checkpoint(self._chunk, *part, use_reentrant=False, preserve_rng_state=False))
        return StepSums(*sums.unbind())

    def _chunk(self, drafts: Tensor, truth: Tensor) -> Tensor:
        draft = F.linear(drafts, self._head).float().log_softmax(-1)
        target = F.linear(truth, self._head).float().log_softmax(-1)
        overlap = torch.minimum(draft.detach(), target).exp().sum()
        agreement = (draft.argmax(-1) == target.argmax(-1)).sum()
        return torch.stack([self._loss(draft, target).sum(), overlap, agreement.float()])
