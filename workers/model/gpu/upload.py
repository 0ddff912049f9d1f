"""Copies integers from the host to the device, from pinned memory, so that the host does not wait for the copy.

A round has one such copy: its batch, and the inputs of its draws, which the head adds before the round runs.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outrider.workers.model.rows import IntArray


class Words:
    """64-bit words that travel with an upload. `tensor` [n] int64 is on the device after it."""

    tensor: Tensor

    def __init__(self, values: NDArray[Any]) -> None:
        self.values = values


class Upload:
    """Uploads to one device. Not thread-safe."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._waiting: Words | None = None

    def with_next(self, values: NDArray[Any]) -> Words:
        """Adds 64-bit `values` to the next upload. Replaces what was added before."""
        self._waiting = Words(values)
        return self._waiting

    def now(self, values: NDArray[Any]) -> Words:
        """Uploads 64-bit `values` alone."""
        words = Words(values)
        words.tensor = self._copied(values.view(np.int64))
        return words

    def __call__(self, arrays: Sequence[IntArray]) -> Tensor:
        """All `arrays` one after another, int32 [their sizes]; and what `with_next` added, in the same copy."""
        words, self._waiting = self._waiting, None
        flat = np.concatenate([each.ravel() for each in arrays]).astype(np.int32)
        if words is None:
            return self._copied(flat)
        first = 2 * len(words.values)
        on_device = self._copied(np.concatenate([words.values.view(np.int32), flat]))
        words.tensor = on_device[:first].view(torch.int64)
        return on_device[first:]

    def _copied(self, flat: NDArray[Any]) -> Tensor:
        host = torch.from_numpy(flat)
        if self._device.type == "cuda":
            host = host.pin_memory()
        return host.to(self._device, non_blocking=True)
