"""Gumbel noise from a counter-based generator: a pure function of (seed, output index, position, vocabulary entry).

No state and no order: any part of it can be made anywhere, again, alone or among others, with the same bits.

The integers are a tree of SplitMix64 streams (Steele, Lea and Flood, OOPSLA 2014; finaliser: Stafford's mix 13),
modulo 2^64:

    mix(z):   z ^= z >> 30;  z *= MIX_1;  z ^= z >> 27;  z *= MIX_2;  z ^= z >> 31
    sequence  = mix(mix(seed + SEED_STEP) + (output_index + 1) * INDEX_STEP)
    row       = mix(sequence + (position + 1) * POSITION_STEP)
    bits(v)   = mix(row + (v + 1) * VOCAB_STEP) >> 12                       52 bits
    u         = (bits + 1/2) 2^-52                                          never 0 or 1
    G         = -log(-log1p(-u))                                            float64

Every level is a bijection of its counter followed by a mix with full avalanche, so counters that differ by one give
unrelated words; SplitMix64 passes BigCrush. Philox4x32-10 spends about 100 torch operations on two such words, this
12 on one. Two rows of one Weyl sequence overlap with probability 2 vocab / 2^64, and then share a shifted part of
their noise: nothing to a sampler.

The constants stand here only; twins in other languages agree bit for bit on `bits`. Reference: reference.py.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

SEED_STEP = 0x9E3779B97F4A7C15
INDEX_STEP = 0xD1B54A32D192ED03
POSITION_STEP = 0x8CB92BA72F3D8DD7
VOCAB_STEP = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB

_MASK_64 = 2**64 - 1
_MASK_52 = 2**52 - 1
_PAD = 32  # transcendentals run on a multiple of it: vector body and tail may differ in the last bit


def sequence_key(seed: int, output_index: int) -> int:
    """The noise key of one sequence, unsigned 64 bits. `seed` is any integer, taken modulo 2^64."""
    return _mix(_mix(seed + SEED_STEP) + (output_index + 1) * INDEX_STEP)


def row_key(sequence: int, position: int) -> int:
    """The noise key of the row that chooses the token at absolute `position`, as a signed 64-bit integer."""
    return _signed(_mix(sequence + (position + 1) * POSITION_STEP))


def noise_bits(row_keys: Tensor, vocab: int) -> Tensor:
    """The noise's integers, 52 bits each: int64 [n] -> int64 [n, vocab]."""
    return _mixed(row_keys, vocab).bitwise_right_shift_(12).bitwise_and_(_MASK_52)


def gumbel_noise(row_keys: Tensor, vocab: int) -> Tensor:
    """Gumbel(0, 1) noise: int64 [n] -> float64 [n, vocab]. A row's bits depend on its key alone."""
    words = noise_bits(row_keys, -vocab % _PAD + vocab)
    words.bitwise_or_(_signed(0xBFF0 << 48))  # as float64: -(1 + bits 2^-52)
    minus_u = words.view(torch.float64).add_(1 - 2**-53)  # exact
    return minus_u.log1p_().neg_().log_().neg_()[:, :vocab]


def key_tensor(row_keys: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(row_keys, dtype=torch.int64).to(device)


def _mixed(row_keys: Tensor, vocab: int) -> Tensor:
    """mix(row + (v + 1) VOCAB_STEP) as int64: multiplication wraps, right shifts need their sign bits cleared."""
    z = row_keys[:, None] + _vocab_steps(vocab, row_keys.device)  # [n, vocab]
    shifted = torch.empty_like(z)
    for shift, factor in ((30, MIX_1), (27, MIX_2), (31, 1)):
        torch.bitwise_right_shift(z, shift, out=shifted)
        z.bitwise_xor_(shifted.bitwise_and_(_MASK_64 >> shift))
        if factor != 1:
            z.mul_(_signed(factor))
    return z


@lru_cache(maxsize=8)
def _vocab_steps(vocab: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return (torch.arange(1, vocab + 1, dtype=torch.int64) * _signed(VOCAB_STEP)).to(device)


def _mix(z: int) -> int:
    z &= _MASK_64
    z = (z ^ (z >> 30)) * MIX_1 & _MASK_64
    z = (z ^ (z >> 27)) * MIX_2 & _MASK_64
    return z ^ (z >> 31)


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word
