"""How a message travels: what a stage link needs of torch.distributed or of shared memory."""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class LinkBrokenError(Exception):
    """The peer is gone, or did not do its part in time; the message says which, without naming it."""


class Transport(Protocol):
    """This rank's end of one direction: it sends, or it receives. LinkBrokenError where the peer fails.

    A message is its packed content and its hidden states, [rows, width] of the link's dtype, on the link's device.
    """

    name: str  # in logs

    def announce(self, timeout_s: float) -> None:
        """Says that a message is being packed, so that its receiver may get ready meanwhile."""
        ...

    def send(self, packed: bytes, hidden: Tensor, timeout_s: float) -> None:
        """Starts sending, and waits only for room. `hidden` may be written over as soon as this returns."""
        ...

    def flush(self, timeout_s: float) -> None:
        """Waits until what was sent no longer needs this process."""
        ...

    def receive(self, timeout_s: float | None) -> tuple[bytearray, Tensor]:
        """The next message, in memory of its own; more may follow the packed content. None: waits for ever."""
        ...

    def close(self) -> None:
        """Tells the peer at once, if it has not heard otherwise, that this end is gone. May be called twice."""
        ...


def as_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU, [bytes]."""
    known_to_numpy = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
    return known_to_numpy.numpy().reshape(-1).view(np.uint8).data


def check_dtype(hidden: Tensor, dtype: torch.dtype) -> None:
    """The receiver takes the bytes for `dtype`. Nothing sent (the word to stop) is of any."""
    if hidden.dtype != dtype and hidden.numel():
        raise TypeError(f"this link carries {dtype}, got hidden states in {hidden.dtype}")
