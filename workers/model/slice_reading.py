"""Reads slices of tensors from safetensors files by their offsets: reads no other byte and maps nothing."""

import math
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

_BAND = 16 << 20  # bytes read at a time if only some columns are needed
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor's bytes are in its file, and their type and shape."""

    file: str
    dtype: str  # safetensors' name: F32, BF16, F8_E4M3, ..
    shape: tuple[int, ...]
    first: int  # byte offset in the file
    end: int


def stored_type(stored: StoredTensor) -> torch.dtype | None:
    """The tensor's dtype; None if torch has none."""
    return _DTYPES.get(stored.dtype)


def read_slice(folder: Path, stored: StoredTensor, rows: slice | None, columns: slice | None) -> Tensor:
    """These rows and columns (None: all) in the stored type, as a copy. Safe from any thread.

    ValueError if the type is unknown, the size does not match the shape, or the file ends early. OSError.
    """
    dtype, shape = _DTYPES.get(stored.dtype), stored.shape
    if dtype is None:
        raise ValueError(f"its type is {stored.dtype}, which is not one of {', '.join(_DTYPES)}")
    if stored.end - stored.first != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{stored.end - stored.first} bytes are not {list(shape)} in {stored.dtype}")
    with (folder / stored.file).open("rb", buffering=0) as file:
        if not shape:
            return _read(file, stored.first, shape, dtype)
        wanted, width = range(shape[0])[rows or slice(None)], math.prod(shape[1:]) * dtype.itemsize
        if columns is None:
            return _read(file, stored.first + wanted.start * width, (len(wanted), *shape[1:]), dtype)
        step = max(1, _BAND // width)
        bands = [wanted[first : first + step] for first in range(0, len(wanted), step)]
        read = (_read(file, stored.first + band.start * width, (len(band), *shape[1:]), dtype) for band in bands)
        return torch.cat([band[:, columns] for band in read])


def _read(file: FileIO, first: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    values = torch.empty(shape, dtype=dtype)
    left = values.view(-1).view(torch.uint8).numpy().data
    file.seek(first)
    while len(left):  # one call reads 2 GB at most
        count = file.readinto(left)
        if not count:
            raise ValueError(f"the file ends {len(left)} bytes early")
        left = left[count:]
    return values
