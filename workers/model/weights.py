"""Reads a checkpoint's tensors one at a time from its safetensors files, so the model is never held twice."""

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outrider.workers.model.quantization import dequantize
from outrider.workers.model.slice_reading import StoredTensor, read_slice, stored_type
from outrider.workers.types.errors import CheckpointError
from outrider.workers.types.fields import Fields
from outrider.workers.types.model.model_config import ModelConfig

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
_SCALE_SUFFIX = "_scale_inv"
_HASHED_WHOLE = 256 << 20  # bytes of weights: these take a fraction of a second to read
_SAMPLE = 4096


def mtp_marker(config: ModelConfig, module: int = 0) -> str:
    """The tensor whose absence means that a checkpoint lacks the weights of that MTP module."""
    return f"model.layers.{config.num_hidden_layers + module}.eh_proj.weight"


class Checkpoint:
    """The tensors in directory `path`, by name. May be read from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._block = ModelConfig.load(path).quantization_block
        self._files = _locate(path)  # tensor name -> file name
        self._headers = {name: _header(path / name) for name in sorted(set(self._files.values()))}
        for name, file in self._files.items():
            if name not in self._headers[file]:
                raise CheckpointError(
                    f"{path / INDEX_FILE} says that {name} is in {file}, but that file does not hold it"
                )
        self._stored = _stored(path, self._files, self._headers)
        self._hashes: dict[int, str] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._files)

    def has(self, name: str) -> bool:
        return name in self._files

    def mtp_modules(self, config: ModelConfig) -> int:
        """How many consecutive MTP modules have weights here; config.json may declare more."""
        present = (self.has(mtp_marker(config, module)) for module in range(config.num_nextn_predict_layers))
        return sum(takewhile(bool, present))

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._headers[self._file(name)][name]["shape"])

    def tensor(
        self,
        name: str,
        dtype: torch.dtype,
        shape: tuple[int, ...],
        rows: slice | None = None,
        columns: slice | None = None,
    ) -> Tensor:
        """Tensor `name` in `dtype`, dequantised. CheckpointError unless its whole shape is `shape`.

        Only `rows` and `columns` are read, if given. The result is a copy.
        """
        self._check_shape(name, shape)
        values = self._read(name, rows, columns)
        if values.dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
            first = tuple((cut or slice(0, None)).start or 0 for cut in (rows, columns))
            return self._dequantized(name, values, first).to(dtype)
        return values.to(dtype)

    def dtype(self, name: str) -> torch.dtype | None:
        """The stored dtype."""
        return stored_type(self._stored[name])

    def is_fp8(self, name: str) -> bool:
        """Whether it is stored in e4m3."""
        return self.has(name) and self.dtype(name) == torch.float8_e4m3fn

    def blocks(
        self, name: str, shape: tuple[int, int], rows: slice, columns: slice | None = None
    ) -> tuple[Tensor, Tensor]:
        """Rows and columns of an FP8 tensor as stored, and the float32 scales of their blocks.

        The slice must begin at block boundaries.
        """
        assert self._block is not None, "config.json says how FP8 is scaled"
        self._check_shape(name, shape)
        columns = columns or slice(0, shape[1])
        scales = self._scales(name)
        first = [cut.start // block for cut, block in zip((rows, columns), self._block, strict=True)]
        end = [-(-cut.stop // block) for cut, block in zip((rows, columns), self._block, strict=True)]
        assert (rows.start % self._block[0], columns.start % self._block[1]) == (0, 0), "blocks are never cut"
        return self._read(name, rows, columns), scales[first[0] : end[0], first[1] : end[1]]

    def content_hash(self, hashed_whole: int = _HASHED_WHOLE) -> str:
        """A digest of config.json and of every weights file's name, size, header and data: equal for copies.

        If files have more than `hashed_whole` bytes in total, only samples from the beginning, middle and end of every
        tensor are hashed. That detects other weights, but not a single number changed between samples. Computed once.
        """
        if hashed_whole not in self._hashes:
            self._hashes[hashed_whole] = self._hash(hashed_whole)
        return self._hashes[hashed_whole]

    def _hash(self, hashed_whole: int) -> str:
        digest = hashlib.blake2b((self.path / "config.json").read_bytes(), digest_size=32)
        sizes = {file: (self.path / file).stat().st_size for file in self._headers}
        whole = sum(sizes.values()) <= hashed_whole
        for file, header in self._headers.items():
            digest.update(json.dumps([file, sizes[file], header], sort_keys=True).encode())
            for part in _whole_file(self.path / file) if whole else _samples(self.path / file, header):
                digest.update(part)
        return digest.hexdigest()

    def identity(self, hashed_whole: int = _HASHED_WHOLE) -> str:
        """The content hash; if it is based on samples, also the files' modification times. Names derived data.

        So copies may differ. Two checkpoints only have the same identity if no file was changed with its time
        preserved.
        """
        statuses = {file: (self.path / file).stat() for file in self._headers}
        digest = hashlib.blake2b(self.content_hash(hashed_whole).encode(), digest_size=32)
        if sum(status.st_size for status in statuses.values()) > hashed_whole:
            digest.update(repr([(file, status.st_mtime_ns) for file, status in statuses.items()]).encode())
        return digest.hexdigest()

    def _check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if self.shape(name) != shape:
            found, wanted = list(self.shape(name)), list(shape)
            raise CheckpointError(f"{self.path}: {name} has shape {found}, but config.json calls for {wanted}")

    def _dequantized(self, name: str, values: Tensor, first: tuple[int, ...]) -> Tensor:
        scales = self._scales(name)
        assert self._block is not None, "there are scales"
        return dequantize(values, scales, self._block, first_row=first[0], first_column=first[1])

    def _scales(self, name: str) -> Tensor:
        """The block scales of a whole FP8 tensor."""
        if self._block is None:
            raise CheckpointError(f"{self.path}: {name} is FP8, but config.json has no quantization_config")
        scales = self._read(name + _SCALE_SUFFIX)
        blocks = tuple(math.ceil(size / block) for size, block in zip(self.shape(name), self._block, strict=True))
        if tuple(scales.shape) != blocks:
            raise CheckpointError(
                f"{self.path}: {name + _SCALE_SUFFIX} has shape {list(scales.shape)},"
                f" but FP8 blocks call for {list(blocks)}"
            )
        return scales.float()

    def _read(self, name: str, rows: slice | None = None, columns: slice | None = None) -> Tensor:
        file = self._file(name)
        try:
            return read_slice(self.path, self._stored[name], rows, columns)
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{self.path / file} is damaged: cannot read {name} ({error})") from error

    def _file(self, name: str) -> str:
        if name not in self._files:
            raise CheckpointError(
                f"checkpoint {self.path} has no tensor {name}: it is incomplete, or not as config.json says"
            )
        return self._files[name]


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint in directory `path`, by name, scales included."""
    files = _locate(path)
    return _stored(path, files, {file: _header(path / file) for file in set(files.values())})


def has_weights(path: Path) -> bool:
    """Whether directory `path` has weights, and not a config.json alone."""
    return (path / INDEX_FILE).is_file() or (path / SINGLE_FILE).is_file()


def _stored(
    path: Path, files: Mapping[str, str], headers: Mapping[str, dict[str, dict[str, Any]]]
) -> dict[str, StoredTensor]:
    starts, found = {file: 8 + _header_length(path / file) for file in headers}, {}
    for name, file in files.items():
        entry, start = headers[file][name], starts[file]
        first, end = entry["data_offsets"]
        found[name] = StoredTensor(file, entry["dtype"], tuple(entry["shape"]), start + first, start + end)
    return found


def _header_length(file: Path) -> int:
    with file.open("rb") as stream:
        return int(struct.unpack("<Q", stream.read(8))[0])


def _locate(path: Path) -> dict[str, str]:
    """The file of each tensor, from the index if there is one."""
    if (path / INDEX_FILE).is_file():
        index = Fields.load(path / INDEX_FILE).group("weight_map").values
        missing = sorted({file for file in index.values() if not (path / file).is_file()})
        if missing:
            first = next(name for name, file in index.items() if file == missing[0])
            raise CheckpointError(
                f"checkpoint {path} lacks {', '.join(missing)}, which {INDEX_FILE} names (for {first})"
            )
        return index
    if (path / SINGLE_FILE).is_file():
        return dict.fromkeys(_header(path / SINGLE_FILE), SINGLE_FILE)
    raise CheckpointError(f"checkpoint {path} has no weights: neither {SINGLE_FILE} nor {INDEX_FILE} is there")


def _header(file: Path) -> dict[str, dict[str, Any]]:
    """Name -> dtype, shape, data_offsets of every tensor in a safetensors file. Checks that the file is complete."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if 8 + length > size:
            raise CheckpointError(f"{file} is truncated: {size} bytes do not hold its header")
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise CheckpointError(f"{file} is not a safetensors file: its header is not JSON") from error
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if 8 + length + entry["data_offsets"][1] > size:
            raise CheckpointError(f"{file} is truncated: it ends before the data of {name}")
    return dict(header)


def _whole_file(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while part := stream.read(1 << 20):
            yield part


def _samples(file: Path, header: dict[str, dict[str, Any]]) -> Iterator[bytes]:
    """The first, middle and last _SAMPLE bytes of every tensor, in file order."""
    with file.open("rb", buffering=0) as stream:
        data = 8 + struct.unpack("<Q", stream.read(8))[0]
        for first, end in sorted(tuple(entry["data_offsets"]) for entry in header.values()):
            last = max(end - _SAMPLE, first)
            for start in sorted({first, (first + last) // 2, last}):
                stream.seek(data + start)
                yield stream.read(min(_SAMPLE, end - start))
