"""The noise: equal to its plain twin, distributed as it should be, and the same in any company and order."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from outrider.kernels import reference
from outrider.kernels.sampling import (
    MIX_1,
    MIX_2,
    VOCAB_STEP,
    gumbel_noise,
    key_tensor,
    noise_bits,
    row_key,
    sequence_key,
)

CPU = torch.device("cpu")
SEEDS = st.integers(-(2**63), 2**63 - 1)


def keys(seed: int, output_index: int, positions: Sequence[int]) -> Tensor:
    sequence = sequence_key(seed, output_index)
    return key_tensor([row_key(sequence, position) for position in positions], CPU)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, output_index=st.integers(0, 127), position=st.integers(0, 163840), vocab=st.integers(1, 70))
def test_the_integers_equal_those_of_the_plain_twin(seed: int, output_index: int, position: int, vocab: int) -> None:
    bits = noise_bits(keys(seed, output_index, [position]), vocab)

    assert bits[0].tolist() == reference.noise_bits(seed, output_index, position, vocab)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, position=st.integers(0, 163840), vocab=st.integers(1, 70))
def test_the_noise_equals_that_of_the_plain_twin_within_rounding(seed: int, position: int, vocab: int) -> None:
    noise = gumbel_noise(keys(seed, 0, [position]), vocab)

    np.testing.assert_allclose(
        noise[0].numpy(), reference.gumbel_noise(seed, 0, position, vocab), rtol=1e-13, atol=1e-14
    )


def test_a_row_is_a_stream_of_splitmix64() -> None:
    """The first outputs from a state of 0 are public."""
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]

    assert noise_bits(key_tensor([0], CPU), 3)[0].tolist() == [word >> 12 for word in published]


@pytest.mark.parametrize("bits", [0, 1, 2**51, 2**52 - 1])
def test_the_extreme_integers_give_finite_noise_by_the_formula(bits: int) -> None:
    key = key_tensor([row_key_that_begins_with(bits)], CPU)

    assert noise_bits(key, 1).item() == bits
    uniform = (bits + 0.5) * 2.0**-52
    assert gumbel_noise(key, 1).item() == pytest.approx(-math.log(-math.log1p(-uniform)), rel=1e-13)


def row_key_that_begins_with(bits: int) -> int:
    """Runs the finaliser backwards."""
    word = bits << 12
    for shift, factor in ((31, MIX_2), (27, MIX_1), (30, 1)):
        unshifted = word
        for _ in range(64 // shift + 1):
            unshifted = word ^ (unshifted >> shift)
        word = unshifted * pow(factor, -1, 2**64) % 2**64
    key = (word - VOCAB_STEP) % 2**64
    return key - 2**64 if key >= 2**63 else key


def test_moments_and_distribution_are_those_of_a_standard_gumbel() -> None:
    noise = gumbel_noise(keys(7, 0, range(100)), 4096).flatten()

    assert noise.mean().item() == pytest.approx(np.euler_gamma, abs=5 * 1.2825 / math.sqrt(noise.numel()))
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.02)
    uniform = torch.exp(-torch.exp(-noise)).sort().values  # by the distribution function
    steps = (torch.arange(noise.numel(), dtype=torch.float64) + 0.5) / noise.numel()
    assert (uniform - steps).abs().max().item() < 1.95 / math.sqrt(noise.numel())  # Kolmogorov-Smirnov at 0.1 %


@pytest.mark.parametrize("shift", ["seed", "output_index", "position", "entry"])
def test_counters_that_differ_by_one_give_unrelated_noise(shift: str) -> None:
    positions = range(64)
    base = gumbel_noise(keys(3, 0, positions), 4097)
    other = {
        "seed": gumbel_noise(keys(4, 0, positions), 4097),
        "output_index": gumbel_noise(keys(3, 1, positions), 4097),
        "position": gumbel_noise(keys(3, 0, range(1, 65)), 4097),
        "entry": base.roll(1, dims=-1),
    }[shift]

    correlation = torch.corrcoef(torch.stack([base.flatten(), other.flatten()]))[0, 1].item()

    assert abs(correlation) < 5 / math.sqrt(base.numel())


@pytest.mark.parametrize("field", ["seed", "position"])
def test_one_flipped_bit_of_a_counter_flips_half_of_the_bits(field: str) -> None:
    flips = []
    for bit in range(40):
        before = reference.noise_bits(0, 0, 0, 16)
        after = (
            reference.noise_bits(1 << bit, 0, 0, 16) if field == "seed" else reference.noise_bits(0, 0, 1 << bit, 16)
        )
        flips += [(a ^ b).bit_count() / 52 for a, b in zip(before, after, strict=True)]

    assert np.mean(flips) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("vocab", [33, 4096, 5001])
def test_a_row_is_the_same_to_the_bit_alone_among_others_and_in_any_order(vocab: int) -> None:
    positions = [5, 0, 99, 3, 1000, 7, 8]
    together = gumbel_noise(keys(11, 2, positions), vocab)

    for index, position in enumerate(positions):
        assert torch.equal(gumbel_noise(keys(11, 2, [position]), vocab)[0], together[index])
    assert torch.equal(gumbel_noise(keys(11, 2, positions[::-1]), vocab), together.flip(0))


def test_a_larger_vocabulary_only_adds_entries() -> None:
    assert torch.equal(gumbel_noise(keys(1, 0, [4]), 4096)[:, :100], gumbel_noise(keys(1, 0, [4]), 100))


def test_a_seed_and_its_negative_differ_as_any_two_do() -> None:
    assert row_key(sequence_key(5, 0), 1) != row_key(sequence_key(-5, 0), 1)
    assert -(2**63) <= row_key(sequence_key(-5, 0), 1) < 2**63
