"""Writes a copy of the checkpoint with the trained tensors, and verifies that nothing else has changed.

A weights file with a trained tensor is copied and the tensor's bytes are overwritten in place: names, order, types and
headers stay. Other weights files are linked, so a model of 700 GB is exported in seconds.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from outrider.workers.model.quantization import quantize
from outrider.workers.model.slice_reading import StoredTensor
from outrider.workers.model.weights import stored_tensors
from outrider.workers.types.errors import OutriderError
from outrider.workers.types.model.model_config import ModelConfig

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_FP8 = "F8_E4M3"
_SCALE_SUFFIX = "_scale_inv"
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """The result of an export. `others_digest` covers every tensor that is not in `written`, before and after."""

    written: list[str]
    changed: list[str]  # those of `written` whose bytes differ
    others: int
    others_digest: str
    linked_files: int  # files linked to the checkpoint's, which are not read again

    def __str__(self) -> str:
        return (
            f"{len(self.changed)} of {len(self.written)} trained tensors changed; the {self.others} others are the same"
            f" bytes as before (blake2b {self.others_digest}; {self.linked_files} files are linked)"
        )


def export(checkpoint: Path, trained_file: Path, out: Path) -> ExportReport:
    """Writes `checkpoint` with the tensors of `trained_file` to `out`, which appears in one step, complete.

    OutriderError if `out` exists, if a tensor does not fit the checkpoint, or if any other tensor has changed.
    """
    if out.exists():
        raise OutriderError(f"{out} exists already: choose another folder, or remove it")
    before = stored_tensors(checkpoint)
    patches = _patches(load_file(trained_file), before, ModelConfig.load(checkpoint).quantization_block)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    _copy(checkpoint, partial, weights={each.file for each in before.values()}, touched=_files(before, patches))
    _overwrite(partial, before, patches)
    report = compare(checkpoint, partial, written=patches)
    partial.rename(out)
    return report


def compare(checkpoint: Path, copy: Path, written: Iterable[str]) -> ExportReport:
    """Compares every tensor's bytes. OutriderError names one that has changed and is not among `written`."""
    before, after, named = stored_tensors(checkpoint), stored_tensors(copy), sorted(written)
    if set(before) != set(after):
        raise OutriderError(f"{copy} does not hold the same tensors as {checkpoint}")
    linked = {file for file in _files(before, before) if (checkpoint / file).samefile(copy / file)}
    digest, changed = hashlib.blake2b(digest_size=16), []
    for name in sorted(before):
        if before[name].file in linked:
            continue
        old, new = _hash(checkpoint, before[name]), _hash(copy, after[name])
        if old != new and name not in named:
            raise OutriderError(f"{copy}: {name} has changed, and was not trained")
        if name in named:
            changed += [name] if old != new else []
        else:
            digest.update(name.encode() + new)
    others = len(before) - len(named)
    return ExportReport(
        written=named, changed=changed, others=others, others_digest=digest.hexdigest(), linked_files=len(linked)
    )


def _patches(
    trained: Mapping[str, Tensor], stored: Mapping[str, StoredTensor], block: tuple[int, int] | None
) -> dict[str, Tensor]:
    """The tensors to write, in the checkpoint's types; FP8 tensors with their scales."""
    patches: dict[str, Tensor] = {}
    for name, tensor in trained.items():
        place = stored.get(name)
        if place is None or place.shape != tuple(tensor.shape):
            found = "no such tensor" if place is None else f"shape {list(place.shape)}"
            raise OutriderError(f"{name} was trained with shape {list(tensor.shape)}, but the checkpoint has {found}")
        if place.dtype == _FP8:
            if block is None:
                raise OutriderError(f"{name} is FP8, but config.json has no quantization_config")
            patches[name], patches[name + _SCALE_SUFFIX] = quantize(tensor, block)
        elif place.dtype in _DTYPES:
            patches[name] = tensor.to(_DTYPES[place.dtype])
        else:
            raise OutriderError(f"{name} is stored as {place.dtype}, which cannot be written")
    return patches


def _copy(checkpoint: Path, partial: Path, weights: set[str], touched: set[str]) -> None:
    partial.mkdir(parents=True)
    for file in sorted(checkpoint.iterdir()):
        if not file.is_file():
            continue
        if file.name in weights - touched:
            _link(file, partial / file.name)
        else:
            shutil.copyfile(file, partial / file.name)


def _link(file: Path, link: Path) -> None:
    """A hard link; a copy if the file system does not support links."""
    try:
        os.link(file.resolve(), link)
    except OSError:
        shutil.copyfile(file, link)


def _overwrite(folder: Path, stored: Mapping[str, StoredTensor], patches: Mapping[str, Tensor]) -> None:
    for name, tensor in patches.items():
        place = stored[name]
        data = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        if len(data) != place.end - place.first:
            raise OutriderError(f"{name}: {len(data)} bytes do not fit the {place.end - place.first} in the checkpoint")
        with (folder / place.file).open("r+b") as stream:
            stream.seek(place.first)
            stream.write(data)


def _files(stored: Mapping[str, StoredTensor], names: Iterable[str]) -> set[str]:
    return {stored[name].file for name in names}


def _hash(folder: Path, place: StoredTensor) -> bytes:
    digest, left = hashlib.blake2b(digest_size=16), place.end - place.first
    with (folder / place.file).open("rb") as stream:
        stream.seek(place.first)
        while left > 0 and (part := stream.read(min(left, _READ_BYTES))):
            digest.update(part)
            left -= len(part)
    return digest.digest()
