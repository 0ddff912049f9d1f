"""The protocol of a stage link's transport: torch.distributed or shared memory."""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class LinkBrokenError(Exception):
    """The peer is gone, or did not respond in time. The message says which, without naming the peer."""


class Transport(Protocol):
    """This rank's end of one direction: it either sends or receives. LinkBrokenError if the peer fails.

    A message is its packed content and its hidden states, [rows, width] of the link's dtype, on the link's device.
    """

    name: str  # in logs

    def announce(self, timeout_s: float) -> None:
        """Announces that a message is being packed, so that its receiver can wake up in the meantime."""
        ...

    def send(self, packed: bytes, hidden: Tensor, timeout_s: float) -> None:
        """Starts sending; waits only for room. `hidden` may be overwritten as soon as this returns."""
        ...

    def flush(self, timeout_s: float) -> None:
        """Waits until sent messages no longer need this process."""
        ...

    def receive(self, timeout_s: float | None) -> tuple[bytearray, Tensor]:
        """The next message, as a copy. More bytes may follow the packed content. `timeout_s` None: no limit."""
        ...

    def close(self) -> None:
        """Notifies the peer, if possible, that this end is closed. May be called twice."""
        ...


def as_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU, [bytes]."""
    known_to_numpy = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
    return known_to_numpy.numpy().reshape(-1).view(np.uint8).data


def check_dtype(hidden: Tensor, dtype: torch.dtype) -> None:
    """TypeError if `hidden` is not `dtype`, which the receiver assumes. Empty states may have any type."""
    if hidden.dtype != dtype and hidden.numel():
        raise TypeError(f"this link carries {dtype}, got hidden states in {hidden.dtype}")
