import pytest
import torch

from outrider.workers.model.quantization import dequantize


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
