"""Collective operations of a group of ranks: one protocol for every transport.

Each call names its purpose (listed in kernels/cpu/library.py), which appears in errors and traffic figures. Every wait
has a deadline. With numerics "exact" no sum is split between ranks; `add` is only used with "fast".
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from outrider.workers.parallel.collectives.traffic import Traffic
from outrider.workers.types.errors import EngineStoppedError


class ExchangeBrokenError(EngineStoppedError):
    """A rank of a group is gone, or did not answer in time. The message names the rank and the collective."""


class Collectives(Protocol):
    """One group, from the view of one of its ranks. Tensors are on the group's device; all methods block.

    They raise ExchangeBrokenError if a rank fails. The group cannot be used after that.
    """

    name: str  # of the transport, in logs
    rank: int  # of this process within the group
    size: int

    @property
    def traffic(self) -> Mapping[str, Traffic]:
        """Traffic by purpose."""
        ...

    def gather(self, part: Tensor, purpose: str, root: int | None = None) -> Tensor:
        """Every rank's `part` in rank order: [size, *shape]. With `root`, the other ranks get an empty tensor.

        All parts have the same shape and type.
        """
        ...

    def add(self, part: Tensor, purpose: str) -> Tensor:
        """The sum of every rank's `part`. All ranks get the same bits; the order of the sum is not specified.

        All parts have the same shape and type. The sum may be computed in place, in `part`.
        """
        ...

    def exchange(self, sent: Tensor, sent_rows: Sequence[int], received_rows: Sequence[int], purpose: str) -> Tensor:
        """All-to-all: sends `sent_rows[r]` rows of `sent` [rows, ...] to rank r, and returns the received rows.

        Both are ordered by rank. `received_rows[r]` is the number of rows that rank r sends. The numbers may differ
        and may be 0.
        """
        ...

    def close(self) -> None:
        """Ends the other ranks' waits for this rank. May be called twice."""
        ...


class SingleRank:
    """The group of one rank. Implements Collectives."""

    name, rank, size = "nothing", 0, 1

    @property
    def traffic(self) -> Mapping[str, Traffic]:
        return {}

    def gather(self, part: Tensor, purpose: str, root: int | None = None) -> Tensor:
        return part.unsqueeze(0)

    def add(self, part: Tensor, purpose: str) -> Tensor:
        return part

    def exchange(self, sent: Tensor, sent_rows: Sequence[int], received_rows: Sequence[int], purpose: str) -> Tensor:
        return sent

    def close(self) -> None:
        """Returns at once."""


def total_traffic(groups: Iterable[Collectives]) -> dict[str, Traffic]:
    """The sum of several groups' traffic, by purpose."""
    total: dict[str, Traffic] = {}
    for group in groups:
        for purpose, traffic in group.traffic.items():
            total[purpose] = total.get(purpose, Traffic()) + traffic
    return total


def as_rows_of_bytes(tensor: Tensor) -> Tensor:
    """`tensor` [rows, ...] as uint8 [rows, bytes of a row], the one type that every backend supports."""
    return tensor.contiguous().view(tensor.shape[0], math.prod(tensor.shape[1:])).view(torch.uint8)
