"""Packs weights in the layout of the compiled kernels, once, in memory with huge pages if available."""

import mmap
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outrider.kernels.cpu import library
from outrider.kernels.cpu.library import BFLOAT16, DOT, FLOAT32, INT8, LANES, PANEL, ROUNDED, STRETCH_8, LinearStruct

_HUGE_PAGE = 2 << 20
_ALIGNMENT = 64
_CHUNK = 64 << 20
_PAST_END = 4096  # the kernels prefetch beyond the weight that they read
_KINDS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16}


def private_memory(size: int) -> mmap.mmap:
    """`size` bytes of zeros. Memory is used when it is first written, in huge pages if available."""
    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        area.madvise(mmap.MADV_HUGEPAGE)
    return area


class Room(Protocol):
    """Allocates memory for packed weights."""

    def take(self, size: int) -> int:
        """The address of `size` bytes."""
        ...


class Arena:
    """Aligned memory for one rank's weights, in huge pages if available. It is released as a whole. Thread-safe."""

    def __init__(self) -> None:
        self._maps: list[mmap.mmap] = []
        self._address, self._left = 0, 0
        self._sizes: dict[int, int] = {}  # size of each allocation, by address
        self._free: defaultdict[int, list[int]] = defaultdict(list)  # free addresses by size
        self._alone = threading.Lock()

    def take(self, size: int) -> int:
        """The address of `size` bytes: zeros, or reused memory."""
        size = -(-size // _ALIGNMENT) * _ALIGNMENT
        with self._alone:
            address = self._free[size].pop() if self._free[size] else self._cut(size)
            self._sizes[address] = size
        return address

    def give_back(self, address: int) -> None:
        """Frees an allocation for later ones of the same size."""
        with self._alone:
            self._free[self._sizes.pop(address)].append(address)

    def _cut(self, size: int) -> int:
        if size + _PAST_END > self._left:
            self._map(max(_CHUNK, size + _PAST_END))
        address = self._address
        self._address, self._left = address + size, self._left - size
        return address

    def _map(self, size: int) -> None:
        pages = -(-size // _HUGE_PAGE) + 1
        area = private_memory(pages * _HUGE_PAGE)
        self._maps.append(area)
        start = np.frombuffer(area, dtype=np.uint8).ctypes.data
        self._address = -(-start // _HUGE_PAGE) * _HUGE_PAGE
        self._left = start + pages * _HUGE_PAGE - self._address


def in_order(outputs: int) -> NDArray[np.int32]:
    """Outputs in their order, padded to whole panels with rows of zeros (-1)."""
    return _filled(np.arange(outputs, dtype=np.int32), PANEL)


def keys_before_values(heads: int, key: int, value: int) -> NDArray[np.int32]:
    """Reorders outputs that are a key and a value per head: all keys, then all values."""
    places = np.arange(heads * (key + value), dtype=np.int32).reshape(heads, -1)
    return _filled(np.concatenate([places[:, :key].ravel(), places[:, key:].ravel()]), PANEL)


def gates_beside_ups(width: int) -> NDArray[np.int32]:
    """Reorders [gates, then ups], `width` each, into panels of 16 gates and their 16 ups."""
    gates = _filled(np.arange(width, dtype=np.int32), LANES).reshape(-1, 1, LANES)
    ups = np.where(gates < 0, np.int32(-1), gates + np.int32(width))
    return np.ascontiguousarray(np.concatenate([gates, ups], axis=1).reshape(-1), dtype=np.int32)


def _filled(rows: NDArray[np.int32], multiple: int) -> NDArray[np.int32]:
    return np.pad(rows, (0, -len(rows) % multiple), constant_values=-1)


def kind_of(dtype: torch.dtype, quantization: str | None = None) -> int:
    """The weight kind of a model in `dtype`."""
    return INT8 if quantization == "int8" else _KINDS[dtype]


def lossless_kind(weight: Tensor, kind: int) -> int:
    """The bfloat16 kind for float32 weights that bfloat16 represents exactly, as in most checkpoints.

    That halves the bytes with the same bits in every product: weights are widened before use, and sums have the same
    order.
    """
    exact = kind == FLOAT32 and torch.equal(weight.to(torch.bfloat16).to(weight.dtype), weight)
    return BFLOAT16 if exact else kind


def packed(room: Room, weight: Tensor, kind: int, order: NDArray[np.int32] | None = None) -> LinearStruct:
    """`weight` [rows, inputs] in float32 or bfloat16, on a CPU, packed as `kind` or as an equivalent smaller kind.

    Output i is its row order[i].
    """
    weight = weight.contiguous()
    kind = lossless_kind(weight, kind)
    order = in_order(weight.shape[0]) if order is None else order
    panels, inputs = len(order) // PANEL, weight.shape[1]
    outputs = int(np.flatnonzero(order >= 0)[-1]) + 1  # without padding at the end
    sizes = {FLOAT32: 4 * inputs, BFLOAT16: 4 * (-(-inputs // 2)), INT8: inputs, ROUNDED: -(-inputs // DOT) * DOT}
    address = room.take(sizes[kind] * PANEL * panels)
    scales = room.take(panels * -(-inputs // STRETCH_8) * PANEL * 4) if kind in (INT8, ROUNDED) else None
    library.load().outrider_pack(
        weight.data_ptr(), _KINDS[weight.dtype], order.ctypes.data, panels, inputs, kind, address, scales
    )
    rounds = kind == ROUNDED
    return LinearStruct(
        panels=address, scales=scales, kind=INT8 if rounds else kind, outputs=outputs, inputs=inputs, rounds=rounds
    )


def give_back(arena: Arena, linear: LinearStruct) -> None:
    """Frees a product that `packed` made. No kernel may be using it."""
    for address in filter(None, (linear.panels, linear.scales)):
        arena.give_back(address)


class Packer(Protocol):
    """Packs weights and keeps them as long as it lives. Use it from one thread at a time.

    Weights are passed as functions, which are only called if the weights are not stored yet.
    """

    def linear(self, weight: Callable[[], Tensor], kind: int, order: NDArray[np.int32] | None = None) -> LinearStruct:
        """As `packed`."""
        ...

    def values(self, values: Callable[[], Tensor]) -> int:
        """The address of a tensor, stored unchanged."""
        ...


class PrivateWeights:
    """Packs into this process's memory. Thread-safe."""

    def __init__(self) -> None:
        self._arena = Arena()
        self._kept: list[Tensor] = []

    def linear(self, weight: Callable[[], Tensor], kind: int, order: NDArray[np.int32] | None = None) -> LinearStruct:
        return packed(self._arena, weight(), kind, order)

    def values(self, values: Callable[[], Tensor]) -> int:
        tensor = values().contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()

    def give_back(self, linear: LinearStruct) -> None:
        """Frees one of its products. No kernel may be using it."""
        give_back(self._arena, linear)
