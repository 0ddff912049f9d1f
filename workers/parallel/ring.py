"""A ring of bytes in memory that two processes share. Knows nothing of messages, nor of how one end rings the other.

The memory has no name (memfd): its descriptor is handed over once, and it is gone with the last process that maps
it, however that ended. So nothing can be left behind, and a container's small /dev/shm does not limit it. Positions
are totals of bytes since the first: the ring's size is a power of two, and a total's remainder is its place.
"""

import mmap
import os

import numpy as np

from outrider.workers.parallel.transport import Bytes

LEAST_CAPACITY = 1 << 18  # bytes; a few hundred small messages


class RingWriter:
    """The sending end. There is no memory until `grow` makes it."""

    def __init__(self) -> None:
        self._memory = _no_memory()
        self._written = 0
        self._released = 0  # total that the reader has done with, as far as is known here

    def grow(self, size: int) -> int | None:
        """The descriptor (the caller's to close) of a new ring, if a message of `size` is too large for this one.

        A ring takes messages of up to half its capacity. The old ring's bytes are then the reader's alone.
        """
        if 2 * size <= len(self._memory):
            return None
        descriptor = os.memfd_create("outrider-stage-link", os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, max(LEAST_CAPACITY, 1 << (2 * size - 1).bit_length()))
            self._memory = _map(descriptor)
        except OSError:
            os.close(descriptor)
            raise
        self._released = self._written
        return descriptor

    def has_room(self, size: int) -> bool:
        return self._written - self._released + size <= len(self._memory)

    def release(self, total: int) -> None:
        """The reader has done with the first `total` bytes ever written."""
        self._released = max(self._released, total)

    def write(self, data: Bytes) -> None:
        """The caller has made sure of the room."""
        at = self._written & (len(self._memory) - 1)
        first = min(len(data), len(self._memory) - at)
        self._memory[at : at + first] = data[:first]
        if first < len(data):
            self._memory[: len(data) - first] = data[first:]
        self._written += len(data)

    def close(self) -> None:
        self._memory = _no_memory()


class RingReader:
    """The receiving end. There is no memory until `attach` maps it."""

    def __init__(self) -> None:
        self.taken = 0  # total ever read
        self._memory = _no_memory()
        self._acknowledged = 0

    def attach(self, descriptor: int) -> None:
        """Goes over to a new ring, from which all later bytes come. The descriptor stays the caller's to close."""
        self._memory = _map(descriptor)

    def read(self, into: Bytes) -> None:
        """Takes the next bytes; the writer has said that they are there."""
        at = self.taken & (len(self._memory) - 1)
        first = min(len(into), len(self._memory) - at)
        into[:first] = self._memory[at : at + first]
        if first < len(into):
            into[first:] = self._memory[: len(into) - first]
        self.taken += len(into)

    def must_acknowledge(self) -> bool:
        """Whether the writer should now hear of `taken`: once for half a ring, so seldom that it costs nothing.

        Half is enough: a writer that lacks room for a message has more than half a ring unread.
        """
        if self.taken - self._acknowledged < len(self._memory) // 2:
            return False
        self._acknowledged = self.taken
        return True

    def close(self) -> None:
        self._memory = _no_memory()


def _map(descriptor: int) -> Bytes:
    """All of the file; unmapped when the array goes."""
    return np.frombuffer(mmap.mmap(descriptor, 0), dtype=np.uint8)


def _no_memory() -> Bytes:
    return np.empty(0, dtype=np.uint8)
