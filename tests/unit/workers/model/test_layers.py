import pytest
import torch

from outrider.workers.model.layers import RmsNorm, gated, sigmoid


@pytest.mark.parametrize("width", [1, 7, 24, 32, 100, 256])
def test_pointwise_functions_have_the_same_bits_at_every_place(width: int) -> None:
    """Torch's own sigmoid does not: the tail of a vector loop rounds otherwise."""
    x = torch.randn(9, 2 * width)

    for row in range(9):
        assert torch.equal(sigmoid(x[row : row + 1]), sigmoid(x)[row : row + 1])
        assert torch.equal(gated(x[row : row + 1]), gated(x)[row : row + 1])


def test_gated_is_silu_of_the_first_half_times_the_second() -> None:
    x = torch.cat([torch.linspace(-100, 100, 51), torch.full((51,), 3.0)]).unsqueeze(0)

    assert torch.allclose(gated(x), torch.nn.functional.silu(x[:, :51]) * 3)


@pytest.mark.parametrize("size", [8, 100, 7168, 32000])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_norm_gives_a_row_the_same_bits_in_every_batch(size: int, threads: int) -> None:
    x, norm, before = torch.randn(9, size), RmsNorm(torch.rand(size), 1e-6), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = norm(x)
        assert all(torch.equal(norm(x[row : row + 1]), whole[row : row + 1]) for row in range(9))
    finally:
        torch.set_num_threads(before)

    assert torch.allclose(whole, torch.nn.functional.rms_norm(x, (size,), norm.weight, 1e-6), atol=1e-5)


def test_a_norm_of_low_precision_is_computed_in_float32() -> None:
    x, weight = torch.randn(3, 64).bfloat16(), torch.rand(64).bfloat16()

    wanted = (x.float() * (x.float().pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()).bfloat16() * weight

    assert torch.equal(RmsNorm(weight, 1e-6)(x), wanted)
