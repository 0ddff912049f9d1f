"""Packed weights in a file, which is written once from beginning to end, then mapped read-only by several processes.

A header says where the table is. The weights follow, aligned; then the table: shape and offset of each weight, in
packing order, and its checksum.
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
_HEAD = struct.Struct("<8sQQQ")  # magic; the table's offset, size and checksum
_ALIGNMENT = 64
_SHAPE = ("kind", "outputs", "inputs", "rounds")  # of a linear layer
_Bytes = NDArray[np.uint8]


class DamagedFileError(Exception):
    """The file's content is not what was written."""


class _Buffers:
    """Allocates separate memory for each weight."""

    def __init__(self) -> None:
        self.taken: list[_Bytes] = []

    def take(self, size: int) -> int:
        self.taken.append(np.zeros(size, dtype=np.uint8))
        return int(self.taken[-1].ctypes.data)


class FileWriter:
    """Packs into `file`, from beginning to end, one weight in memory at a time. Returned addresses are invalid.

    OSError if the file cannot grow.
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
        """Writes the table and the header; before that the file is damaged."""
        table = np.frombuffer(json.dumps(self._table).encode(), dtype=np.uint8)
        first, size, checksum = self._write(table)
        self._file.seek(0)
        self._file.write(_HEAD.pack(_MAGIC, first, size, checksum))
        self._file.flush()

    def _write(self, piece: _Bytes) -> tuple[int, int, int]:
        """Returns offset, size and checksum."""
        first = -(-self._end // _ALIGNMENT) * _ALIGNMENT
        self._file.write(bytes(first - self._end))
        self._file.write(piece.data)
        self._end = first + len(piece)
        return first, len(piece), _checksum(piece)


class MappedWeights:
    """The weights of a FileWriter, in pages shared by all processes that map the file. Packs nothing.

    DamagedFileError unless every byte is as it was written. Weights must be requested in the order of writing.
    """

    def __init__(self, file: BinaryIO) -> None:
        size = os.fstat(file.fileno()).st_size
        if size < _HEAD.size:
            raise DamagedFileError("it is cut off")
        self._map = mmap.mmap(file.fileno(), size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # few file systems support it; /dev/shm may
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
        """The table, after checking every weight."""
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
