"""Reads and writes harvested text: safetensors shards of token ids and final hidden states. Shards have no order.

A shard holds complete samples. It is renamed into place and named by a hash of its content, so a process may die at
any time and several may write to one folder. A sample that was written twice is counted once.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from outrider.workers.types.errors import OutriderError
from outrider.workers.types.rounds.round import IntArray

_FORMAT = "outrider-harvest-1"
_PATTERN = "shard-*.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A prompt and the model's own completion of it."""

    token_ids: IntArray  # [n + 1], prompt first
    hidden: Tensor  # [n, hidden]: states after the final norm, for every token except the last
    prompt_tokens: int
    temperature: float
    seed: int
    output_index: int = 0

    @property
    def key(self) -> tuple[int, int]:
        """The key of its sampling noise: samples with equal keys and prompts are identical."""
        return self.seed, self.output_index

    @property
    def bytes(self) -> int:
        return self.hidden.nbytes + self.token_ids.nbytes


def write_shard(folder: Path, samples: Sequence[Sample]) -> Path:
    """Writes `samples` as one shard, atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        "token_ids": torch.cat([torch.from_numpy(sample.token_ids.astype(np.int32)) for sample in samples]),
        "hidden": torch.cat([sample.hidden for sample in samples]),
        "lengths": torch.tensor([len(sample.token_ids) for sample in samples]),
        "prompt_tokens": torch.tensor([sample.prompt_tokens for sample in samples]),
        "temperatures": torch.tensor([sample.temperature for sample in samples], dtype=torch.float64),
        "keys": torch.tensor([sample.key for sample in samples]),
    }
    digest = hashlib.blake2b(digest_size=8)
    for name in ("token_ids", "lengths", "keys"):
        digest.update(tensors[name].numpy().tobytes())
    path = folder / f"shard-{digest.hexdigest()}.safetensors"
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"format": _FORMAT})
    partial.replace(path)
    return path


@dataclass(frozen=True, slots=True)
class _Place:
    """A sample's position in its shard."""

    file: Path
    row: int  # of its first hidden state


class Harvest:
    """All samples in `folder`, ordered by key. Hidden states are read only by `hidden`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[Path, Any] = {}
        found: dict[tuple[int, int], tuple[Sample, _Place]] = {}
        for file in sorted(folder.glob(_PATTERN)):
            found |= {sample.key: (sample, place) for sample, place in self._samples(file)}
        self._found = [found[key] for key in sorted(found)]

    def __len__(self) -> int:
        return len(self._found)

    @property
    def keys(self) -> set[tuple[int, int]]:
        return {sample.key for sample, _ in self._found}

    @property
    def outlines(self) -> list[Sample]:
        """The samples without their hidden states ([0, 0] each)."""
        return [sample for sample, _ in self._found]

    def hidden(self, index: int, first: int, count: int) -> Tensor:
        """States first .. first + count - 1 of sample `index`, [count, hidden]."""
        place = self._found[index][1]
        start = place.row + first
        return torch.as_tensor(self._file(place.file).get_slice("hidden")[start : start + count])

    def _samples(self, file: Path) -> Iterator[tuple[Sample, _Place]]:
        opened = self._file(file)
        if (opened.metadata() or {}).get("format") != _FORMAT:
            raise OutriderError(f"{file} is not a shard of harvested text ({_FORMAT})")
        tokens = opened.get_tensor("token_ids").numpy().astype(np.int64)
        columns = [opened.get_tensor(name).tolist() for name in ("lengths", "prompt_tokens", "temperatures", "keys")]
        token = row = 0
        for length, prompt_tokens, temperature, (seed, output_index) in zip(*columns, strict=True):
            outline = Sample(
                token_ids=tokens[token : token + length],
                hidden=torch.empty(0, 0),
                prompt_tokens=prompt_tokens,
                temperature=temperature,
                seed=seed,
                output_index=output_index,
            )
            yield outline, _Place(file, row)
            token, row = token + length, row + length - 1

    def _file(self, file: Path) -> Any:
        if file not in self._open:
            try:
                self._open[file] = safe_open(file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise OutriderError(f"{file} is damaged: {error}") from error
        return self._open[file]


def folder_bytes(folder: Path) -> int:
    """Total size of the shards in `folder`."""
    return sum(file.stat().st_size for file in folder.glob(_PATTERN))
