"""The paged KV cache of the PyTorch implementation."""

import torch
from torch import Tensor

from outrider.kernels.cpu.packing import private_memory
from outrider.workers.model.batch import CHUNK, MIN_CHUNKS


class Cache:
    """The cache of some layers: slots of `width` values, in blocks. All values are finite from the start."""

    def __init__(self, layers: int, width: int, block_size: int, dtype: torch.dtype, device: torch.device) -> None:
        self._shape = (layers, block_size, width)
        self._dtype, self.device = dtype, device
        self.layers: list[Tensor] = []  # each [slots, width]

    @property
    def bytes_per_block(self) -> int:
        layers, block_size, width = self._shape
        return layers * block_size * width * self._dtype.itemsize

    def allocate(self, num_blocks: int) -> None:
        """Allocates blocks 0..num_blocks-1, and slots after them for an item that begins in the last block."""
        layers, block_size, width = self._shape
        slots = num_blocks * block_size + MIN_CHUNKS * CHUNK
        self.layers = [zeros_when_touched(slots, width, self._dtype, self.device) for _ in range(layers)]


def zeros_when_touched(slots: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros [slots, width]. On a CPU memory is only used once it is written, in huge pages if available."""
    if device.type != "cpu":
        return torch.zeros(slots, width, dtype=dtype, device=device)
    memory = private_memory(slots * width * dtype.itemsize)
    return torch.frombuffer(memory, dtype=dtype).view(slots, width)
