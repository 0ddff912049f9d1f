"""Sorts a row of logits by (value descending, id ascending), only as far as top_k and top_p need.

torch's topk does not define the order of ties, and sorting a large vocabulary takes longer than the rest of sampling.
So values and ids are packed into integers without ties, and topk is called with growing widths until it is enough. The
width depends on the row alone, so batching does not change results.
"""

from functools import lru_cache

import torch
from torch import Tensor

FIRST_WIDTH = 1024
_GROWTH = 16


def order_keys(logits: Tensor) -> Tensor:
    """Distinct integers that descend as (logit descending, id ascending): float32 [n, vocab] -> int64 [n, vocab]."""
    bits = (logits + 0.0).view(torch.int32)  # + 0.0: minus zero equals zero
    bits.bitwise_xor_(bits.bitwise_right_shift(31).bitwise_and_(0x7FFFFFFF))
    return bits.long().bitwise_left_shift_(32).add_(_descending(logits.shape[-1], logits.device))


def key_ids(keys: Tensor, vocab: int) -> Tensor:
    """The token ids of keys made by `order_keys`."""
    return vocab - 1 - (keys & 0xFFFFFFFF)


def beyond_top_k_top_p(logits: Tensor, scores: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """True for the tokens that top_k and then top_p exclude: [n, vocab] bool.

    `logits` (float32) give the order, `scores` (float64) the probabilities; `top_k` is int64 [n], 1..vocab, `top_p`
    float64 [n]. top_k keeps exactly k tokens; top_p the shortest prefix of them whose sum reaches p (p = 1: all).
    """
    keys = order_keys(logits)
    masses = (scores - scores.amax(dim=-1, keepdim=True)).exp_()
    totals = masses.cumsum(dim=-1)[:, -1]
    return keys < _last_kept(keys, masses, totals, top_k, top_p, FIRST_WIDTH)[:, None]


def _last_kept(keys: Tensor, masses: Tensor, totals: Tensor, top_k: Tensor, top_p: Tensor, width: int) -> Tensor:
    """The key of the last token that each row keeps, [n]. Sorts `width` tokens, and more in rows that need more."""
    vocab = keys.shape[-1]
    width = min(width, vocab)
    best = keys.topk(width, dim=-1).values  # [n, width]
    sums = masses.gather(-1, key_ids(best, vocab)).cumsum(dim=-1)
    mass_of_k = sums.gather(-1, (top_k.clamp(max=width) - 1)[:, None])[:, 0]
    goal = torch.where(top_p < 1, top_p * torch.where(top_k < vocab, mass_of_k, totals), torch.inf)
    kept = torch.minimum((sums < goal[:, None]).sum(dim=-1) + 1, top_k.clamp(max=width))
    last = best.gather(-1, (kept - 1)[:, None])[:, 0]
    further = (top_k > width) & ((top_k < vocab) | (sums[:, -1] < goal))
    if further.any():
        rows = further.nonzero()[:, 0]
        last[rows] = _last_kept(keys[rows], masses[rows], totals[rows], top_k[rows], top_p[rows], width * _GROWTH)
    return last


@lru_cache(maxsize=8)
def _descending(vocab: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.arange(vocab - 1, -1, -1, device=device)
