import pytest
import torch

from outrider.workers.model.quantization import dequantize, quantize


@pytest.mark.parametrize(("rows", "columns"), [(4, 6), (5, 7), (1, 13)])
def test_every_value_is_multiplied_by_its_blocks_scale(rows: int, columns: int) -> None:
    values = torch.randn(rows, columns).to(torch.float8_e4m3fn)
    scales = torch.rand(-(-rows // 2), -(-columns // 3))

    got = dequantize(values, scales, (2, 3))

    for row in range(rows):
        for column in range(columns):
            assert got[row, column] == values[row, column].float() * scales[row // 2, column // 3]


@pytest.mark.parametrize("first", [0, 3, 4, 9])
def test_rows_from_the_middle_of_a_weight_keep_their_blocks(first: int) -> None:
    values = torch.randn(12, 8).to(torch.float8_e4m3fn)
    scales = torch.rand(3, 2)

    assert torch.equal(
        dequantize(values[first:], scales, (4, 4), first_row=first), dequantize(values, scales, (4, 4))[first:]
    )


def test_quantising_and_back_loses_no_more_than_e4m3_does_and_fills_its_range() -> None:
    values = torch.randn(37, 50, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 50)

    packed, scales = quantize(values, (16, 16))

    assert (packed.shape, scales.shape) == ((37, 50), (3, 4))
    back = dequantize(packed, scales, (16, 16))
    largest = scales.repeat_interleave(16, 0).repeat_interleave(16, 1)[:37, :50] * 448
    assert ((back - values).abs() <= torch.maximum(values.abs() / 16, largest / 448 / 512) * 1.001).all()
    assert packed.float().abs().max() == 448


def test_a_block_of_zeros_stays_zero() -> None:
    packed, scales = quantize(torch.zeros(16, 16), (16, 16))

    assert torch.equal(dequantize(packed, scales, (16, 16)), torch.zeros(16, 16))
