"""Sends messages over the replica's torch.distributed group (gloo), from host to host."""

import struct
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from outrider.workers.parallel.groups import first_clause
from outrider.workers.parallel.links.transport import LinkBrokenError, as_bytes, check_dtype

_FOREVER = timedelta(days=365)
_SIZES = struct.Struct("=3q")  # bytes of packed content, rows and width of the hidden states
_FIRST_BYTES = 4096  # of the first tensor: the sizes and, for most rounds, all packed content


class GroupTransport:
    """One end. A message is two tensors, or three if its packed content does not fit into the first."""

    name = "gloo"

    def __init__(self, peer: int, dtype: torch.dtype) -> None:
        self._peer, self._dtype = peer, dtype
        self._sending: list[tuple[Any, Tensor]] = []

    def announce(self, timeout_s: float) -> None:
        """Does nothing: an extra message would cost as much time as it saves."""

    def send(self, packed: bytes, hidden: Tensor, timeout_s: float) -> None:
        """Also waits until the previous message was sent."""
        check_dtype(hidden, self._dtype)
        self.flush(timeout_s)
        data = bytearray(_SIZES.pack(len(packed), *hidden.shape) + packed)
        data.extend(bytes(max(0, _FIRST_BYTES - len(data))))
        whole = torch.frombuffer(data, dtype=torch.uint8)
        for part in (whole[:_FIRST_BYTES], whole[_FIRST_BYTES:], hidden.detach().clone()):
            self._start(part)

    def flush(self, timeout_s: float) -> None:
        try:
            for work, _ in self._sending:
                work.wait(timedelta(seconds=timeout_s))
        except RuntimeError as error:
            raise LinkBrokenError(first_clause(error)) from error
        self._sending.clear()

    def receive(self, timeout_s: float | None) -> tuple[bytearray, Tensor]:
        wait = _FOREVER if timeout_s is None else timedelta(seconds=timeout_s)
        data = self._take_bytes(_FIRST_BYTES, wait)
        packed_bytes, rows, width = _SIZES.unpack_from(data)
        end = _SIZES.size + packed_bytes
        data += self._take_bytes(max(0, end - _FIRST_BYTES), wait)
        return data[_SIZES.size : end], self._take((rows, width), self._dtype, wait)

    def close(self) -> None:
        """Does nothing: the process group closes its connections."""

    def _start(self, part: Tensor) -> None:
        """Empty parts are not sent; the receiver knows the sizes."""
        if part.numel():
            try:
                self._sending.append((dist.isend(part, self._peer), part))
            except RuntimeError as error:
                raise LinkBrokenError(first_clause(error)) from error

    def _take_bytes(self, count: int, wait: timedelta) -> bytearray:
        return bytearray(as_bytes(self._take((count,), torch.uint8, wait)))

    def _take(self, shape: tuple[int, ...], dtype: torch.dtype, wait: timedelta) -> Tensor:
        tensor = torch.empty(shape, dtype=dtype)
        if tensor.numel():
            try:
                work = dist.irecv(tensor, self._peer)
                assert work is not None, "this rank is in the group"
                work.wait(wait)
            except RuntimeError as error:
                raise LinkBrokenError(first_clause(error)) from error
        return tensor
