"""Sends messages between two processes of one machine: bytes in a shared ring, notifications over a socket.

A packet on the Unix-domain socket says that a message is in the ring, orders memory accesses between the ends and
wakes the receiver. The socket closes when the peer's process ends. So a killed peer is noticed at once, and a frozen
one at the deadline. Waking a sleeping core takes as long as packing a message, so the two overlap: the sender first
announces a message, and the woken receiver polls the socket briefly before it sleeps again. Otherwise no thread spins.
On two cores a spinning thread loses a time slice of several milliseconds whenever another thread is ready to run.
"""

import contextlib
import os
import socket
from enum import IntEnum
from struct import Struct

import torch
from torch import Tensor

from outrider.workers.parallel.links.ring import RingReader, RingWriter
from outrider.workers.parallel.links.transport import LinkBrokenError, as_bytes, check_dtype

_PACKET = Struct("=4q")  # a PacketKind and up to three numbers
_TIME = Struct("@ll")  # the system's timeval
_POLLS = 40  # about 2 us each
_GONE = "it closed the connection"


class PacketKind(IntEnum):
    MESSAGE = 1  # bytes of packed content, rows and width of the hidden states
    NEW_RING = 2  # the next packet contains its descriptor
    TAKEN = 3  # total of bytes that the receiver has consumed
    ANNOUNCE = 4  # a message is being packed


class SharedMemory:
    """One end, on a connected socket that it owns. Implements Transport."""

    name = "shared memory"

    def __init__(self, connection: socket.socket, dtype: torch.dtype) -> None:
        connection.settimeout(None)  # SO_RCVTIMEO is used instead: one system call per packet
        self._connection, self._dtype = connection, dtype
        self._writer, self._reader = RingWriter(), RingReader()
        self._timeouts_s: dict[int, float | None] = {}  # currently set, by socket option

    def announce(self, timeout_s: float) -> None:
        self._post(timeout_s, PacketKind.ANNOUNCE)

    def send(self, packed: bytes, hidden: Tensor, timeout_s: float) -> None:
        check_dtype(hidden, self._dtype)
        states = as_bytes(hidden.contiguous())
        start = _aligned(len(packed))
        size = start + len(states)
        self._grow(size, timeout_s)
        while not self._writer.has_room(size):
            kind, total, _, _ = self._take_packet(timeout_s, "it took nothing")
            assert kind == PacketKind.TAKEN, "a receiving end only acknowledges"
            self._writer.release(total)
        self._writer.write(packed.ljust(start, b"\0"))
        self._writer.write(states)
        self._post(timeout_s, PacketKind.MESSAGE, len(packed), *hidden.shape)

    def flush(self, timeout_s: float) -> None:
        """Nothing to wait for: sent messages are in memory that the peer has mapped too."""

    def receive(self, timeout_s: float | None) -> tuple[bytearray, Tensor]:
        kind, packed_bytes, rows, width = self._take_packet(timeout_s, "nothing came")
        while kind != PacketKind.MESSAGE:
            if kind == PacketKind.NEW_RING:
                self._attach()
            kind, packed_bytes, rows, width = self._take_packet(timeout_s, "nothing came", polls=_POLLS)
        start = _aligned(packed_bytes)
        data = self._reader.read(start + rows * width * self._dtype.itemsize)
        if self._reader.must_acknowledge():
            with contextlib.suppress(LinkBrokenError):  # this message has arrived; the next wait raises the error
                self._post(timeout_s, PacketKind.TAKEN, self._reader.taken)
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
            return torch.empty((rows, width), dtype=self._dtype)  # frombuffer rejects empty buffers
        return torch.frombuffer(data, dtype=self._dtype, count=rows * width, offset=start).view(rows, width)

    def _grow(self, size: int, timeout_s: float) -> None:
        """Ensures that the ring accepts `size` bytes; if it does not, sends the peer a new ring."""
        try:
            descriptor = self._writer.grow(size)
        except OSError as error:
            raise LinkBrokenError(f"there is no shared memory for {size} bytes: {error}") from error
        if descriptor is None:
            return
        try:
            self._post(timeout_s, PacketKind.NEW_RING)
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
                raise LinkBrokenError(
                    "this process could not receive the shared memory's descriptor: too many open files?"
                )
            self._reader.attach(descriptors[0])
        except OSError as error:
            raise LinkBrokenError(f"this process could not map the shared memory: {error}") from error
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _post(self, timeout_s: float | None, kind: PacketKind, one: int = 0, two: int = 0, three: int = 0) -> None:
        self._limit(socket.SO_SNDTIMEO, timeout_s)
        try:
            self._connection.send(_PACKET.pack(kind, one, two, three))
        except OSError as error:
            raise _broken(error, "it took nothing", timeout_s) from error

    def _take_packet(self, timeout_s: float | None, symptom: str, polls: int = 0) -> tuple[int, int, int, int]:
        self._limit(socket.SO_RCVTIMEO, timeout_s)
        try:
            packet = self._receive_packet(polls)
        except OSError as error:
            raise _broken(error, symptom, timeout_s) from error
        if not packet:
            raise LinkBrokenError(_GONE)
        return _PACKET.unpack(packet)

    def _receive_packet(self, polls: int) -> bytes:
        """Polls `polls` times for a packet, then sleeps until one arrives."""
        try:
            for _ in range(polls):
                with contextlib.suppress(BlockingIOError):
                    return self._connection.recv(_PACKET.size, socket.MSG_DONTWAIT)
            return self._connection.recv(_PACKET.size)
        except ConnectionResetError:  # the peer closed with unread packets; its own are still readable
            return self._connection.recv(_PACKET.size)

    def _limit(self, option: int, timeout_s: float | None) -> None:
        """Sets the socket's timeout; None: no limit."""
        if self._timeouts_s.get(option) != timeout_s:
            microseconds = 0 if timeout_s is None else max(1, round(timeout_s * 1e6))  # 0 means no limit
            self._connection.setsockopt(socket.SOL_SOCKET, option, _TIME.pack(*divmod(microseconds, 1_000_000)))
            self._timeouts_s[option] = timeout_s


def _broken(error: OSError, symptom: str, timeout_s: float | None) -> LinkBrokenError:
    """The socket timed out, or its other end is closed."""
    late = isinstance(error, BlockingIOError)
    return LinkBrokenError(f"{symptom} within {timeout_s:g} s" if late else _GONE)


def _aligned(size: int) -> int:
    """`size` rounded up to an offset where hidden states may begin: as aligned as memory from Python."""
    return size + -size % 16
