"""Log-probabilities of tokens under raw logits, before any transform (vLLM's default)."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from outrider.workers.sampling.ordering import key_ids, order_keys
from outrider.workers.types.rounds.round import FloatArray, IntArray, ints, offsets


@dataclass(frozen=True, slots=True, kw_only=True)
class Logprobs:
    """For each of T places: the chosen token first, then the likeliest others, by (value descending, id ascending).

    `ranks` are 1-based, in the raw distribution. `offsets` [T+1] index the other three arrays.
    """

    offsets: IntArray = field(default_factory=lambda: ints([0]))
    ids: IntArray = field(default_factory=ints)
    ranks: IntArray = field(default_factory=ints)
    values: FloatArray = field(default_factory=lambda: np.zeros(0))


def logprobs(logits: Tensor, token_ids: IntArray, counts: Sequence[int | None]) -> Logprobs:
    """Log-probabilities of chosen tokens [T], from their rows of raw logits, float [T, vocab].

    `counts[t]`: number of likeliest tokens to list besides the chosen one; None: list nothing for this place.
    """
    requested = [index for index, count in enumerate(counts) if count is not None]
    if not requested:
        return Logprobs()
    rows = logits[torch.tensor(requested, device=logits.device)].float()
    wanted = [counts[index] or 0 for index in requested]
    ids, ranks = _listed(rows, torch.from_numpy(token_ids[requested]).to(rows.device), max(wanted))
    values = rows.log_softmax(dim=-1).gather(-1, ids).double()
    # The chosen token is in column 0, so it is dropped from the likeliest ones.
    listed = (ranks <= torch.tensor(wanted, device=rows.device)[:, None]) & (ids != ids[:, :1])
    listed[:, 0] = True
    widths = ints(np.zeros(len(counts)))
    widths[requested] = listed.sum(dim=-1).cpu().numpy()
    return Logprobs(
        offsets=offsets(widths),
        ids=ids[listed].cpu().numpy(),
        ranks=ranks[listed].cpu().numpy(),
        values=values[listed].cpu().numpy(),
    )


def joined(parts: Sequence[Logprobs]) -> Logprobs:
    """Concatenates the parts."""
    widths = [np.diff(part.offsets) for part in parts]
    return Logprobs(
        offsets=offsets(np.concatenate([ints(), *widths])),
        ids=np.concatenate([ints(), *(part.ids for part in parts)]),
        ranks=np.concatenate([ints(), *(part.ranks for part in parts)]),
        values=np.concatenate([np.zeros(0), *(part.values for part in parts)]),
    )


def _listed(logits: Tensor, chosen: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Ids and ranks of the chosen token, then of the `most` likeliest: int64 [n, 1 + most] each."""
    keys = order_keys(logits)
    best = keys.topk(min(most, logits.shape[-1]), dim=-1).values
    chosen_ranks = (keys > keys.gather(-1, chosen[:, None])).sum(dim=-1, keepdim=True) + 1
    best_ranks = torch.arange(1, best.shape[-1] + 1, device=logits.device).expand_as(best)
    ids = torch.cat([chosen[:, None], key_ids(best, logits.shape[-1])], dim=-1)
    return ids, torch.cat([chosen_ranks, best_ranks], dim=-1)
