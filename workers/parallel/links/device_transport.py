"""Sends messages between GPUs: packed content over the host, hidden states from device to device.

An idle rank waits on its host, where nothing spins. The device receive is enqueued only after the message's content
has arrived. Each direction has its own communicator. With one for both, two ranks that both send and receive would
wait for each other, since a communicator runs transfers in the order in which each end enqueued them.
"""

import struct
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from outrider.workers.parallel.links.transport import LinkBrokenError, Transport, check_dtype
from outrider.workers.parallel.watchdog import Watchdog

_SHAPE = struct.Struct("=2q")  # rows and width of the hidden states
_NOTHING = torch.empty(0, 0)


class DeviceTransport:
    """One end. `content` is the transport of packed content; `states` is this direction's own process group."""

    def __init__(
        self,
        content: Transport,
        states: Any,
        peer: int,
        dtype: torch.dtype,
        device: torch.device,
        watchdog: Watchdog,
    ) -> None:
        self.name = f"nccl, rounds over {content.name}"
        self._content, self._states, self._peer = content, states, peer
        self._dtype, self._device, self._watchdog = dtype, device, watchdog
        self._sending: list[tuple[Any, Tensor]] = []  # sends that the device has not completed

    def announce(self, timeout_s: float) -> None:
        self._content.announce(timeout_s)

    def send(self, packed: bytes, hidden: Tensor, timeout_s: float) -> None:
        check_dtype(hidden, self._dtype)
        self._content.send(_SHAPE.pack(*hidden.shape) + packed, _NOTHING, timeout_s)
        if not hidden.numel():
            return
        own = hidden.detach().clone()
        try:
            work = dist.isend(own, self._peer, group=self._states)
        except RuntimeError as error:
            raise LinkBrokenError(str(error).strip().splitlines()[0]) from error
        self._watch(work, timeout_s, f"sending states to rank {self._peer}")
        # The device must not wait for this send: it would not receive its peer's states before the peer receives
        # these.
        self._sending = [(w, states) for w, states in self._sending if not w.is_completed()] + [(work, own)]

    def flush(self, timeout_s: float) -> None:
        self._content.flush(timeout_s)
        for work, _ in self._sending:
            work.wait()
        self._sending.clear()

    def receive(self, timeout_s: float | None) -> tuple[bytearray, Tensor]:
        data, _ = self._content.receive(timeout_s)
        rows, width = _SHAPE.unpack_from(data)
        hidden = torch.empty(rows, width, dtype=self._dtype, device=self._device)
        if hidden.numel():
            try:
                work: Any = dist.irecv(hidden, self._peer, group=self._states)
            except RuntimeError as error:
                raise LinkBrokenError(str(error).strip().splitlines()[0]) from error
            self._watch(work, timeout_s or float("inf"), f"receiving states from rank {self._peer}")
            work.wait()  # the device waits; the host continues
        return data[_SHAPE.size :], hidden

    def close(self) -> None:
        self._content.close()

    def _watch(self, work: Any, timeout_s: float, what: str) -> None:
        assert work is not None, "this rank is in the group"
        self._watchdog.watch(work, timeout_s, f"{what} took more than {timeout_s:g} s")
