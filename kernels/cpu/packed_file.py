"""Packed weights in a file: written once from its beginning to its end, then mapped read-only by whoever needs them.

A head says where the table is; the weights follow, each aligned; then the table, which says what and where they are,
in the order in which they were packed, and the checksum of each.
"""

import contextlib
import json
import mmap
import os
import struct
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outrider.kernels.cpu import library
from outrider.kernels.cpu.library import LinearStruct
from outrider.kernels.cpu.packing import packed

_MAGIC = b"outrider"
_HEAD = struct.Struct("<8sQQQ")  # magic; the table's first byte, size and checksum
_ALIGNMENT = 64
_SHAPE = ("kind", "outputs", "inputs", "rounds")  # of a product
_Bytes = NDArray[np.uint8]


class DamagedFileError(Exception):
    """What the file holds is not what was written."""


class _Buffers:
    """Memory of its own for every piece that is taken."""

    def __init__(self) -> None:
        self.taken: list[_Bytes] = []

    def take(self, size: int) -> int:
        self.taken.append(np.zeros(size, dtype=np.uint8))
        return int(self.taken[-1].ctypes.data)


class FileWriter:
    """Packs into `file`, from its beginning: one weight at a time is in memory. What it returns points to nothing.

    OSError where the file cannot grow.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._table: list[dict[str, Any]] = []
        self._end = file.write(bytes(_HEAD.size))

    def linear(self, weight: Callable[[], Tensor], kind: int, order: NDArray[np.int32] | None = None) -> LinearStruct:
        buffers = _Buffers()
        linear = packed(buffers, weight(), kind, order)
        shape = {name: getattr(linear, name) for name in _SHAPE}
        self._table.append({"pieces": [self._write(piece) for piece in buffers.taken], **shape})
        return LinearStruct(**shape)

    def values(self, values: Callable[[], Tensor]) -> int:
        tensor = values().contiguous()
        self._table.append({"pieces": [self._write(tensor.view(-1).view(torch.uint8).numpy())]})
        return 0

    def finish(self) -> None:
        """Writes the table and the head: until then the file is damaged."""
        table = np.frombuffer(json.dumps(self._table).encode(), dtype=np.uint8)
        first, size, checksum = self._write(table)
        self._file.seek(0)
        self._file.write(_HEAD.pack(_MAGIC, first, size, checksum))
        self._file.flush()

    def _write(self, piece: _Bytes) -> tuple[int, int, int]:
        """First byte, size, checksum."""
        first = -(-self._end // _ALIGNMENT) * _ALIGNMENT
        self._file.write(bytes(first - self._end))
        self._file.write(piece.data)
        self._end = first + len(piece)
        return first, len(piece), _checksum(piece)


class MappedWeights:
    """What a FileWriter wrote, in pages that all processes share which map the file; no weight is made anew.

    DamagedFileError unless every byte is as it was written. Asked in the order of the writing.
    """

    def __init__(self, file: BinaryIO) -> None:
        size = os.fstat(file.fileno()).st_size
        if size < _HEAD.size:
            raise DamagedFileError("it is cut off")
        self._map = mmap.mmap(file.fileno(), size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # few file systems have them; /dev/shm may
                self._map.madvise(mmap.MADV_HUGEPAGE)
        self._bytes: _Bytes = np.frombuffer(self._map, dtype=np.uint8)
        self._address = int(self._bytes.ctypes.data)
        self._records = iter(self._checked())

    def linear(self, weight: Callable[[], Tensor], kind: int, order: NDArray[np.int32] | None = None) -> LinearStruct:
        record = next(self._records)
        panels, *scales = (self._address + first for first, _, _ in record["pieces"])
        shape = {name: record[name] for name in _SHAPE}
        return LinearStruct(panels=panels, scales=scales[0] if scales else None, **shape)

    def values(self, values: Callable[[], Tensor]) -> int:
        return self._address + int(next(self._records)["pieces"][0][0])

    def _checked(self) -> list[dict[str, Any]]:
        """The table, once every weight is known to be as it was."""
        magic, *place = _HEAD.unpack_from(self._map)
        if magic != _MAGIC:
            raise DamagedFileError("it does not begin as packed weights do")
        table: list[dict[str, Any]] = json.loads(self._piece(*place).tobytes())
        for record in table:
            for piece in record["pieces"]:
                self._piece(*piece)
        return table

    def _piece(self, first: int, size: int, checksum: int) -> _Bytes:
        piece = self._bytes[first : first + size]
        if len(piece) < size:
            raise DamagedFileError("it is cut off")
        if _checksum(piece) != checksum:
            raise DamagedFileError(f"bytes {first} to {first + size} are not what was written")
        return piece


def _checksum(piece: _Bytes) -> int:
    return int(library.load().outrider_checksum(piece.ctypes.data, len(piece)))
