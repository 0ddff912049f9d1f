"""A ring of bytes in memory that two processes share. Knows nothing of messages, nor of how one end rings the other.

The memory has no name (memfd): its descriptor is handed over once, and it is gone with the last process that maps
it, however that ended. So nothing can be left behind, and a container's small /dev/shm does not limit it. Positions
are totals of bytes since the first: the ring's size is a power of two, and a total's remainder is its place.
"""

import mmap
import os

LEAST_CAPACITY = 1 << 18  # bytes; a few hundred small messages


class RingWriter:
    """The sending end. There is no memory until `grow` makes it."""

    def __init__(self) -> None:
        self._memory = memoryview(bytearray())
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

    def write(self, data: bytes | memoryview) -> None:
        """The caller has made sure of the room."""
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
    """The receiving end. There is no memory until `attach` maps it."""

    def __init__(self) -> None:
        self.taken = 0  # total ever read
        self._memory = memoryview(bytearray())
        self._acknowledged = 0

    def attach(self, descriptor: int) -> None:
        """Goes over to a new ring, from which all later bytes come. The descriptor stays the caller's to close."""
        self._memory = _map(descriptor)

    def read(self, size: int) -> bytearray:
        """Takes the next bytes; the writer has said that they are there."""
        at = self.taken & (len(self._memory) - 1)
        data = bytearray(self._memory[at : at + size])
        if len(data) < size:
            data += self._memory[: size - len(data)]
        self.taken += size
        return data

    def must_acknowledge(self) -> bool:
        """Whether the writer should now hear of `taken`: once for half a ring, so seldom that it costs nothing.

        Half is enough: a writer that lacks room for a message has more than half a ring unread.
        """
        if self.taken - self._acknowledged < len(self._memory) // 2:
            return False
        self._acknowledged = self.taken
        return True

    def close(self) -> None:
        self._memory = memoryview(bytearray())


def _map(descriptor: int) -> memoryview:
    """All of the file; unmapped when the view goes."""
    return memoryview(mmap.mmap(descriptor, 0))
