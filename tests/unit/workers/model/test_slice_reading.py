from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from outrider.workers.model.slice_reading import StoredTensor, read_slice
from outrider.workers.model.weights import stored_tensors

LARGE = (5000, 1000)  # its columns are read in several bands


def stored(folder: Path, values: Tensor) -> StoredTensor:
    save_file({"before": torch.ones(3), "it": values, "then": torch.ones(3)}, folder / "model.safetensors")
    return stored_tensors(folder)["it"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("rows", [None, slice(0, 9), slice(7, 4999)])
@pytest.mark.parametrize("columns", [None, slice(0, 1), slice(300, 1000)])
def test_rows_and_columns_are_those_of_the_whole(
    dtype: torch.dtype, rows: slice | None, columns: slice | None, tmp_path: Path
) -> None:
    values = torch.randn(LARGE).to(dtype)

    got = read_slice(tmp_path, stored(tmp_path, values), rows, columns)

    wanted = values[rows or slice(None), columns or slice(None)]
    assert got.dtype == dtype
    assert torch.equal(got.view(torch.uint8), wanted.contiguous().view(torch.uint8))


@pytest.mark.parametrize("shape", [(), (3,), (0, 4)])
def test_any_shape_is_read(shape: tuple[int, ...], tmp_path: Path) -> None:
    values = torch.randn(shape)

    assert torch.equal(read_slice(tmp_path, stored(tmp_path, values), None, None), values)


def test_nothing_of_the_file_stays_mapped(tmp_path: Path) -> None:
    read = read_slice(tmp_path, stored(tmp_path, torch.randn(LARGE)), None, None)

    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert read.numel() == 5_000_000


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dtype": "I4"}, "its type is I4, which is not one of F64"),
        ({"shape": (4, 6)}, r"80 bytes are not \[4, 6\] in F32"),
        ({"first": 1 << 20, "end": (1 << 20) + 80}, "the file ends 80 bytes early"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], says: str, tmp_path: Path) -> None:
    good = stored(tmp_path, torch.randn(4, 5))
    bad = StoredTensor(**{**{name: getattr(good, name) for name in StoredTensor.__slots__}, **change})

    with pytest.raises(ValueError, match=says):
        read_slice(tmp_path, bad, None, None)
