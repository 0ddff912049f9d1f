"""Samples text from a network in batches, with coupled noise.

Used to train the drafter on the model's own text, and to evaluate it. Not the engine's sampler: no paging, and all
prompts have one length.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from outrider.workers.training.layers import TrainableDecoderLayer
from outrider.workers.training.network import Network


@dataclass(frozen=True, slots=True)
class Noise:
    """Gumbel noise that depends on (seed, position) only, so that target and drafter use the same."""

    seed: int
    rows: int
    vocabulary: int

    def at(self, position: int) -> Tensor:
        """Noise for the token at `position`, float32 [rows, vocabulary]."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + position)
        uniform = torch.rand(self.rows, self.vocabulary, generator=generator).clamp_(1e-7, 1 - 1e-7)
        return -torch.log(-torch.log(uniform))


def choose(logits: Tensor, temperature: float, noise: Tensor | None) -> Tensor:
    """The token of each row: plain argmax at temperature 0, else argmax(logits / T + noise)."""
    if temperature == 0 or noise is None:
        return logits.argmax(-1)
    return (logits / temperature + noise).argmax(-1)


class _Cache:
    """Keys and values of one layer, expanded."""

    def __init__(self, network: Network, rows: int, length: int) -> None:
        shape = network.shape
        heads = shape.num_attention_heads
        self.keys = torch.zeros(rows, heads, length, shape.qk_head_dim, dtype=network.dtype)
        self.values = torch.zeros(rows, heads, length, shape.v_head_dim, dtype=network.dtype)

    def attend(self, layer: TrainableDecoderLayer, x: Tensor, rotary: Tensor, start: int) -> Tensor:
        """The residual stream after the layer, for tokens at start.. (a prompt at 0, or one token)."""
        query, key, value = layer.self_attn.project(layer.input_layernorm(x), rotary)
        end = start + x.shape[1]
        self.keys[:, :, start:end], self.values[:, :, start:end] = key, value
        keys, values = self.keys[:, :, :end], self.values[:, :, :end]
        scale = layer.self_attn.scale
        attended = F.scaled_dot_product_attention(query, keys, values, is_causal=start == 0, scale=scale)
        return layer.feed_forward(x + layer.self_attn.combine(attended))[0]


@torch.no_grad()
def continuations(network: Network, prompts: Tensor, count: int, temperature: float, noise: Noise | None) -> Tensor:
    """`prompts` [rows, length] with `count` tokens of the network's own added to each: [rows, length + count]."""
    rows, length = prompts.shape
    caches = [_Cache(network, rows, length + count) for _ in range(network.shape.num_hidden_layers)]
    tokens, new, start = prompts, prompts, 0
    for _ in range(count):
        rotary = network.rotary(start, start + new.shape[1])
        x = network.model.embed_tokens(new)
        for layer, cache in zip(network.decoder_layers(), caches, strict=True):
            x = cache.attend(layer, x, rotary, start)
        logits = network.logits(network.model.norm(x[:, -1]))
        start = tokens.shape[1]
        new = choose(logits, temperature, noise.at(start) if noise else None)[:, None]
        tokens = torch.cat([tokens, new], 1)
    return tokens
