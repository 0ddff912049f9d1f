"""Plain twins of the kernels: the specifications that their tests compare with. Slow on purpose.

Written from the formulas alone and sharing nothing with the kernels but their constants.
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from outrider.kernels.sampling import INDEX_STEP, MIX_1, MIX_2, POSITION_STEP, SEED_STEP, VOCAB_STEP


def noise_bits(seed: int, output_index: int, position: int, vocab: int) -> list[int]:
    """One row of the noise's integers (sampling.noise_bits), 52 bits each."""
    sequence = next(_stream(next(_stream(seed, SEED_STEP)), INDEX_STEP, skip=output_index))
    row = _stream(next(_stream(sequence, POSITION_STEP, skip=position)), VOCAB_STEP)
    return [next(row) // 2**12 for _ in range(vocab)]


def gumbel_noise(seed: int, output_index: int, position: int, vocab: int) -> NDArray[np.float64]:
    """One row of Gumbel noise (sampling.gumbel_noise), float64 [vocab]."""
    uniform = [(bits + 0.5) * 2.0**-52 for bits in noise_bits(seed, output_index, position, vocab)]
    return np.array([-math.log(-math.log1p(-u)) for u in uniform])


def _stream(start: int, step: int, skip: int = 0) -> Iterator[int]:
    """SplitMix64: the mixed words of the Weyl sequence start + step, start + 2 step, ... modulo 2^64."""
    state = (start + skip * step) % 2**64
    while True:
        state = (state + step) % 2**64
        word = state
        for shift, factor in ((30, MIX_1), (27, MIX_2), (31, 1)):
            word = (word ^ (word // 2**shift)) * factor % 2**64
        yield word


def quantized_int8(weight: NDArray[np.float32], stretch: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """8-bit weights of [outputs, inputs], and the scales [outputs, ceil(inputs / stretch)] (cpu/src/linear.h, pack).

    A row's inputs share a scale `stretch` by `stretch`: their largest magnitude / 127. All is in float32.
    """
    outputs, inputs = weight.shape
    integers = np.zeros((outputs, inputs), dtype=np.int8)
    scales = np.zeros((outputs, -(-inputs // stretch)), dtype=np.float32)
    for row in range(outputs):
        for part, first in enumerate(range(0, inputs, stretch)):
            values = weight[row, first : first + stretch]
            most = np.abs(values).max()
            if most > 0:
                integers[row, first : first + stretch] = np.rint(values * (np.float32(127) / most))
            scales[row, part] = most / np.float32(127)
    return integers, scales


def dequantized_int8(weight: NDArray[np.float32], stretch: int) -> NDArray[np.float64]:
    """What those weights stand for, float64 [outputs, inputs]."""
    integers, scales = quantized_int8(weight, stretch)
    return integers.astype(np.float64) * scales.repeat(stretch, axis=1)[:, : weight.shape[1]].astype(np.float64)
