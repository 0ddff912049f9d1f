import pytest
import torch
from torch import Tensor

from outrider.workers.model.linear import FastLinear, Linear, PackedLinear, TiledLinear, make_linear

SHAPES = [(1, 1), (24, 40), (256, 704), (1000, 96), (1024, 64), (1025, 64), (1152, 33), (3000, 128)]


def weight_and_rows(
    inputs: int, outputs: int, rows: int = 70, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(inputs + outputs)
    draw = torch.randn(outputs + rows, inputs, generator=generator).to(dtype)
    return draw[:outputs], draw[outputs:]


def assert_rows_stand_alone(linear: Linear, x: Tensor) -> None:
    """Every row has the same bits alone, in any company and at any place."""
    whole = linear(x)
    for first, count in [(0, 1), (5, 1), (69, 1), (3, 2), (7, 3), (1, 5), (20, 16), (4, 17), (0, 64), (3, 66)]:
        assert torch.equal(linear(x[first : first + count]), whole[first : first + count])
    assert torch.equal(linear(x.flip(0)), whole.flip(0))


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_an_exact_linear_gives_a_row_the_same_bits_in_every_batch(inputs: int, outputs: int) -> None:
    weight, x = weight_and_rows(inputs, outputs)
    linear = make_linear(weight, exact=True)

    assert_rows_stand_alone(linear, x)
    assert torch.allclose(linear(x).double(), x.double() @ weight.double().T, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("inputs", "outputs"), [(24, 40), (256, 704), (1152, 33)])
def test_an_exact_linear_in_bfloat16_gives_a_row_the_same_bits_in_every_batch(inputs: int, outputs: int) -> None:
    weight, x = weight_and_rows(inputs, outputs, dtype=torch.bfloat16)
    linear = make_linear(weight, exact=True)

    assert_rows_stand_alone(linear, x)
    wanted = x.double() @ weight.double().T
    assert ((linear(x).double() - wanted).norm() / wanted.norm()) < 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("inputs", "outputs"), [(512, 64), (768, 200), (1000, 128), (1024, 96), (1152, 33)])
def test_a_long_chunk_gives_a_row_the_bits_that_any_part_of_it_gives(
    inputs: int, outputs: int, dtype: torch.dtype
) -> None:
    weight, x = weight_and_rows(inputs, outputs, rows=2100, dtype=dtype)
    linear = make_linear(weight, exact=True)

    whole = linear(x)

    for count in (1, 17, 33, 48, 64, 65, 100, 150, 300, 511, 512, 1100, 2048):
        for first in (0, (2100 - count) // 3, 2100 - count):
            assert torch.equal(linear(x[first : first + count]), whole[first : first + count]), count


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_tiles_of_one_shape_give_a_row_the_same_bits_in_every_batch(inputs: int, outputs: int) -> None:
    weight, x = weight_and_rows(inputs, outputs)
    linear = TiledLinear(weight)

    assert_rows_stand_alone(linear, x)
    assert torch.allclose(linear(x).double(), x.double() @ weight.double().T, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("inputs", "outputs"), [(256, 96), (1200, 96)])
def test_any_split_of_the_outputs_gives_the_same_bits(inputs: int, outputs: int) -> None:
    weight, x = weight_and_rows(inputs, outputs)
    whole = make_linear(weight, exact=True)(x)

    for cut in (2, 32, 50):  # one output alone would be computed otherwise
        parts = [make_linear(part, exact=True)(x) for part in (weight[:cut], weight[cut:])]
        assert torch.equal(torch.cat(parts, dim=1), whole)


def test_weights_laid_together_are_one_product() -> None:
    weight, x = weight_and_rows(64, 96)

    together = make_linear([weight[:40], weight[40:]], exact=True)

    assert torch.equal(together(x), make_linear(weight, exact=True)(x))


@pytest.mark.parametrize("kind", [FastLinear, PackedLinear, TiledLinear])
def test_no_rows_give_no_rows(kind: type[Linear]) -> None:
    assert kind(torch.randn(8, 4))(torch.empty(0, 4)).shape == (0, 8)


def test_fast_numerics_use_torchs_own_product() -> None:
    assert isinstance(make_linear(torch.randn(8, 4), exact=False), FastLinear)
