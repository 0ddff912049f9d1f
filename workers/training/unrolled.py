"""Attention of a drafter that is unrolled from every position of a text at once."""

import torch
from torch import Tensor


def attend_unrolled(query: Tensor, keys: list[Tensor], values: list[Tensor], scale: float) -> Tensor:
    """Attention of the newest step: start i sees the first step's entries 0..i, and of the later steps only its own."""
    length = query.shape[-2]
    future = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
    scores = (query @ keys[0].transpose(-2, -1)).float().masked_fill(future, float("-inf"))
    own = [(query * key).sum(-1, keepdim=True).float() for key in keys[1:]]
    joined = torch.cat([scores, *own], -1)  # [batch, heads, starts, n + steps - 1]
    weights = (joined * scale).softmax(-1).to(query.dtype)
    attended = weights[..., :length] @ values[0]
    for number, value in enumerate(values[1:]):
        attended = attended + weights[..., length + number, None] * value
    return attended
