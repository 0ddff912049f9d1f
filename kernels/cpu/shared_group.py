"""Collectives between processes of one machine, by the compiled library: see src/collectives.h.

The memory is an anonymous file (memfd) that all ranks map. It is freed when the last rank ends, for whatever reason.
"""

import ctypes
import mmap
import os

from outrider.kernels.cpu import library
from outrider.kernels.cpu.library import EXCHANGE, GATHER, PURPOSES, GroupStruct

_ROOM = 1 << 20  # bytes that a rank sends at a time; memory is used when it is first written
_SPINS = 2000  # pauses, about 40 us


class BrokenGroupError(Exception):
    """`rank` of the group has `left`, or is late."""

    def __init__(self, code: int) -> None:
        self.rank, self.left = code // 2 - 1, bool(code % 2)
        super().__init__(f"rank {self.rank} {'left' if self.left else 'is late'}")


def make_memory(size: int) -> int:
    """The descriptor of memory for a group of `size` ranks. The caller must close it. OSError if there is none."""
    descriptor = os.memfd_create("outrider-group", os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, library.load().outrider_group_size(size, _ROOM))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


class SharedGroup:
    """One rank's end of a group. Calls block without the GIL; use it from one thread at a time."""

    def __init__(self, descriptor: int, rank: int, size: int, timeout_s: float, *, shared_cores: bool) -> None:
        """Maps the memory; the caller still closes the descriptor. `shared_cores`: threads do not spin."""
        self.rank, self.size = rank, size
        self._library = library.load()
        self._memory = mmap.mmap(descriptor, self._library.outrider_group_size(size, _ROOM))
        self._view = ctypes.c_char.from_buffer(self._memory)
        spins = 0 if shared_cores else _SPINS
        self._handle: int | None = self._library.outrider_group_open(
            ctypes.addressof(self._view), rank, size, _ROOM, spins, round(timeout_s * 1e9)
        )

    @property
    def structure(self) -> GroupStruct:
        """The structure for the compiled kernels; valid while this group is open."""
        gather, exchange = (
            kind(ctypes.cast(getattr(self._library, name), ctypes.c_void_p).value or 0)
            for kind, name in ((GATHER, "outrider_group_gather"), (EXCHANGE, "outrider_group_exchange"))
        )
        return GroupStruct(rank=self.rank, size=self.size, state=self._handle, gather=gather, exchange=exchange)

    def gather(self, purpose: str, mine: int, size: int, root: int, out: int) -> None:
        """Copies `size` bytes at `mine` of every rank to `out`, in rank order; only on `root` if that is not -1."""
        code = self._library.outrider_group_gather(self._handle, PURPOSES.index(purpose), mine, size, root, out)
        if code:
            raise BrokenGroupError(code)

    def exchange(self, purpose: str, sent: int, sent_sizes: list[int], out: int, received_sizes: list[int]) -> None:
        """Sends bytes at `sent` to every rank, and receives those from every rank in `out`, both in rank order."""
        sizes = ctypes.c_int64 * self.size
        code = self._library.outrider_group_exchange(
            self._handle, PURPOSES.index(purpose), sent, sizes(*sent_sizes), out, sizes(*received_sizes)
        )
        if code:
            raise BrokenGroupError(code)

    def traffic(self) -> dict[str, tuple[int, int, float]]:
        """Count, sent bytes and seconds, by purpose."""
        if self._handle is None:
            return {}
        carried = self._library.outrider_group_traffic(self._handle)
        return {
            purpose: (carried[i].count, carried[i].bytes, carried[i].nanoseconds / 1e9)
            for i, purpose in enumerate(PURPOSES)
            if carried[i].count
        }

    def close(self) -> None:
        """Ends the other ranks' waits for this rank."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            self._library.outrider_group_close(handle)
