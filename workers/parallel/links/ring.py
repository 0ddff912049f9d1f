"""A ring buffer in memory that two processes share. Does not know messages, nor how the ends notify each other.

The memory has no name (memfd). Its descriptor is sent once, and the memory is freed when the last process that maps it
ends, for whatever reason. So nothing is left behind, and a container's small /dev/shm is no limit. Positions are total
byte counts. The ring's size is a power of two, and a position modulo the size is the offset.
"""

import mmap
import os

LEAST_CAPACITY = 1 << 18  # bytes; a few hundred small messages


class RingWriter:
    """The sending end. It has no memory until `grow` creates it."""

    def __init__(self) -> None:
        self._memory = memoryview(bytearray())
        self._written = 0
        self._released = 0  # total that the reader has acknowledged

    def grow(self, size: int) -> int | None:
        """The descriptor of a new ring if a message of `size` is too large for this one. The caller must close it.

        A ring accepts messages of up to half its capacity. The old ring then belongs to the reader only.
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
        """Records that the reader has consumed the first `total` bytes ever written."""
        self._released = max(self._released, total)

    def write(self, data: bytes | memoryview) -> None:
        """The caller must have checked `has_room`."""
        at = self._written & (len(self._memory) - 1)
        end = at + len(data)
        if (over := end - len(self._memory)) > 0:
            self._memory[at:] = data[:-over]
            self._memory[:over] = data[-over:]
        else:
            self._memory[at:end] = data
        self._written += len(data)

    def close(self) -> None:
        self._memory = memoryview(bytearray())


class RingReader:
    """The receiving end. It has no memory until `attach` maps it."""

    def __init__(self) -> None:
        self.taken = 0  # total ever read
        self._memory = memoryview(bytearray())
        self._acknowledged = 0

    def attach(self, descriptor: int) -> None:
        """Switches to a new ring, which holds all later bytes. The caller still closes the descriptor."""
        self._memory = _map(descriptor)

    def read(self, size: int) -> bytearray:
        """Consumes the next bytes, which the writer must have announced."""
        at = self.taken & (len(self._memory) - 1)
        data = bytearray(self._memory[at : at + size])
        if len(data) < size:
            data += self._memory[: size - len(data)]
        self.taken += size
        return data

    def must_acknowledge(self) -> bool:
        """Whether the reader should now send `taken` to the writer: once per half ring, so the cost is negligible.

        Half is enough: a writer that lacks room for a message has more than half a ring unread.
        """
        if self.taken - self._acknowledged < len(self._memory) // 2:
            return False
        self._acknowledged = self.taken
        return True

    def close(self) -> None:
        self._memory = memoryview(bytearray())


def _map(descriptor: int) -> memoryview:
    """The whole file; it is unmapped when the view is freed."""
    return memoryview(mmap.mmap(descriptor, 0))
