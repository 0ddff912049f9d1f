"""Carries messages between two processes of one machine: bytes in a ring of shared memory, a doorbell on a socket.

The socket (Unix-domain, packets) says where to look and when, orders memory between the ends, wakes a sleeping
receiver, and ends with the peer's process: so a killed peer is known at once, and a frozen one at the deadline.
Waking a processor that went to sleep takes as long as packing a message, so the two overlap: a sender first says that
it packs, and the receiver, woken, glances at the socket for a moment before it sleeps again. Otherwise no thread spins:
on two cores, whoever did lost a time slice of several milliseconds whenever anything else wanted one.
"""

import contextlib
import os
import socket
from enum import IntEnum
from struct import Struct

import torch
from torch import Tensor

from outrider.workers.parallel.ring import RingReader, RingWriter
from outrider.workers.parallel.transport import LinkBrokenError, as_bytes, check_dtype

_PACKET = Struct("=4q")  # a Bell and up to three numbers
_TIME = Struct("@ll")  # the system's timeval
_GLANCES = 40  # of about 2 us each
_GONE = "it closed the connection"


class Bell(IntEnum):
    MESSAGE = 1  # bytes of packed content, rows and width of the hidden states
    NEW_RING = 2  # the next packet brings its descriptor
    TAKEN = 3  # total of bytes that the receiver has done with
    COMING = 4  # a message is being packed


class SharedMemory:
    """One end, on a connected socket that it owns. Implements Transport."""

    name = "shared memory"

    def __init__(self, connection: socket.socket, dtype: torch.dtype) -> None:
        connection.settimeout(None)  # deadlines are the kernel's: one system call a packet
        self._connection, self._dtype = connection, dtype
        self._writer, self._reader = RingWriter(), RingReader()
        self._timeouts_s: dict[int, float | None] = {}  # in force, by socket option

    def announce(self, timeout_s: float) -> None:
        self._post(timeout_s, Bell.COMING)

    def send(self, packed: bytes, hidden: Tensor, timeout_s: float) -> None:
        check_dtype(hidden, self._dtype)
        states = as_bytes(hidden.contiguous())
        start = _aligned(len(packed))
        size = start + len(states)
        self._grow(size, timeout_s)
        while not self._writer.has_room(size):
            bell, total, _, _ = self._take_packet(timeout_s, "it took nothing")
            assert bell == Bell.TAKEN, "a receiving end only acknowledges"
            self._writer.release(total)
        self._writer.write(packed.ljust(start, b"\0"))
        self._writer.write(states)
        self._post(timeout_s, Bell.MESSAGE, len(packed), *hidden.shape)

    def flush(self, timeout_s: float) -> None:
        """Nothing to wait for: what was sent lies in memory that the peer has too."""

    def receive(self, timeout_s: float | None) -> tuple[bytearray, Tensor]:
        bell, packed_bytes, rows, width = self._take_packet(timeout_s, "nothing came")
        while bell != Bell.MESSAGE:
            if bell == Bell.NEW_RING:
                self._attach()
            bell, packed_bytes, rows, width = self._take_packet(timeout_s, "nothing came", glances=_GLANCES)
        start = _aligned(packed_bytes)
        data = self._reader.read(start + rows * width * self._dtype.itemsize)
        if self._reader.must_acknowledge():
            with contextlib.suppress(LinkBrokenError):  # this message is here; the next wait will say it
                self._post(timeout_s, Bell.TAKEN, self._reader.taken)
        return data, self._states(data, start, rows, width)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)  # also if a forked child holds a copy of the socket
        self._connection.close()
        self._writer.close()
        self._reader.close()

    def _states(self, data: bytearray, start: int, rows: int, width: int) -> Tensor:
        """A view of `data`, which must not change."""
        if not rows * width:
            return torch.empty((rows, width), dtype=self._dtype)  # frombuffer knows no empty ones
        return torch.frombuffer(data, dtype=self._dtype, count=rows * width, offset=start).view(rows, width)

    def _grow(self, size: int, timeout_s: float) -> None:
        """Makes sure that the ring can take `size` bytes, if need be with a new one that the peer is sent."""
        try:
            descriptor = self._writer.grow(size)
        except OSError as error:
            raise LinkBrokenError(f"there is no shared memory for {size} bytes: {error}") from error
        if descriptor is None:
            return
        try:
            self._post(timeout_s, Bell.NEW_RING)
            socket.send_fds(self._connection, [b"ring"], [descriptor])
        except OSError as error:
            raise _broken(error, "it took nothing", timeout_s) from error
        finally:
            os.close(descriptor)

    def _attach(self) -> None:
        descriptors: list[int] = []
        try:
            _, descriptors, _, _ = socket.recv_fds(self._connection, _PACKET.size, 1)
            if not descriptors:
                raise LinkBrokenError("this process could not take over its memory: too many open files?")
            self._reader.attach(descriptors[0])
        except OSError as error:
            raise LinkBrokenError(f"this process could not map its memory: {error}") from error
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _post(self, timeout_s: float | None, bell: Bell, one: int = 0, two: int = 0, three: int = 0) -> None:
        self._limit(socket.SO_SNDTIMEO, timeout_s)
        try:
            self._connection.send(_PACKET.pack(bell, one, two, three))
        except OSError as error:
            raise _broken(error, "it took nothing", timeout_s) from error

    def _take_packet(self, timeout_s: float | None, symptom: str, glances: int = 0) -> tuple[int, int, int, int]:
        self._limit(socket.SO_RCVTIMEO, timeout_s)
        try:
            packet = self._receive_packet(glances)
        except OSError as error:
            raise _broken(error, symptom, timeout_s) from error
        if not packet:
            raise LinkBrokenError(_GONE)
        return _PACKET.unpack(packet)

    def _receive_packet(self, glances: int) -> bytes:
        """Looks `glances` times whether there is one, then sleeps until there is."""
        try:
            for _ in range(glances):
                with contextlib.suppress(BlockingIOError):
                    return self._connection.recv(_PACKET.size, socket.MSG_DONTWAIT)
            return self._connection.recv(_PACKET.size)
        except ConnectionResetError:  # it left without reading everything; what it sent is still here, then the end
            return self._connection.recv(_PACKET.size)

    def _limit(self, option: int, timeout_s: float | None) -> None:
        """Sets how long the socket waits; None: for ever."""
        if self._timeouts_s.get(option) != timeout_s:
            microseconds = 0 if timeout_s is None else max(1, round(timeout_s * 1e6))  # 0 means for ever
            self._connection.setsockopt(socket.SOL_SOCKET, option, _TIME.pack(*divmod(microseconds, 1_000_000)))
            self._timeouts_s[option] = timeout_s


def _broken(error: OSError, symptom: str, timeout_s: float | None) -> LinkBrokenError:
    """The socket's deadline has passed, or its other end is closed."""
    late = isinstance(error, BlockingIOError)
    return LinkBrokenError(f"{symptom} within {timeout_s:g} s" if late else _GONE)


def _aligned(size: int) -> int:
    """`size` rounded up to where hidden states may begin: as aligned as memory of Python's own."""
    return size + -size % 16
