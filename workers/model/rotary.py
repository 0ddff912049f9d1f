"""Rotary positions of interleaved pairs (2i, 2i+1), the layout of DeepSeek's weights; YaRN where a model has it."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from outrider.workers.types.model.model_config import ModelConfig, Yarn

Rotation = tuple[Tensor, Tensor]  # cosines and signed sines of a batch's rows


def frequencies(config: ModelConfig) -> NDArray[np.float32]:
    """Radians per position of every pair, float32 [qk_rope_head_dim / 2]."""
    pairs = np.arange(0, config.qk_rope_head_dim, 2, dtype=np.float32) / np.float32(config.qk_rope_head_dim)
    original = (1.0 / config.rope_theta**pairs).astype(np.float32)
    if config.yarn is None:
        return np.asarray(original)
    kept = 1 - _ramp(config.yarn, config.rope_theta, config.qk_rope_head_dim)
    stretched = original / np.float32(config.yarn.factor)
    return np.asarray(stretched * (1 - kept) + original * kept, dtype=np.float32)


def _ramp(yarn: Yarn, theta: float, dim: int) -> NDArray[np.float32]:
    """0 for pairs that keep their frequency, 1 for those that are fully interpolated, linear in between."""

    def pair_of(rotations: float) -> float:
        return dim * math.log(yarn.original_max_position_embeddings / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair_of(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_of(yarn.beta_slow)), dim - 1)
    width = (high - low) or 0.001
    slope = (np.arange(dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(width)
    return np.asarray(np.clip(slope, 0, 1), dtype=np.float32)


def rotary_table(config: ModelConfig) -> NDArray[np.float32]:
    """Cosines and signed sines of every position, [positions, 2, qk_rope_head_dim].

    Computed once in double precision, so the number of threads and the vector width change no bits.
    """
    scale = config.yarn.rotation_scale if config.yarn else 1.0
    positions = np.arange(config.max_position_embeddings, dtype=np.float32)
    angles = np.outer(positions, frequencies(config)).astype(np.float64)
    # A pair (a, b) becomes (a cos - b sin, b cos + a sin): a value times cos, plus its partner times -sin or sin.
    cos = np.repeat(np.cos(angles) * scale, 2, axis=1)
    sin = np.repeat(np.sin(angles) * scale, 2, axis=1) * np.tile([-1.0, 1.0], angles.shape[1])
    return np.stack([cos, sin], axis=1).astype(np.float32)


class Rotary(nn.Module):
    """`rotary_table` on a device."""

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        super().__init__()
        self._table = nn.Buffer(torch.from_numpy(rotary_table(config)).to(device), persistent=False)

    def at(self, positions: Tensor) -> Rotation:
        """Cosines and signed sines at `positions` [R], each [R, 1, rope], for `rotate`."""
        cos, sin = self._table.index_select(0, positions).unsqueeze(2).unbind(1)
        return cos, sin


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """`x` [R, heads, rope] in float32, rotated by `rotation` (Rotary.at). Without fused multiply-adds."""
    cos, sin = rotation
    rows, heads, rope = x.shape
    partner = x.view(rows, heads, -1, 2).flip(-1).view(rows, heads, rope)
    return (x * cos).add_(partner.mul_(sin))
