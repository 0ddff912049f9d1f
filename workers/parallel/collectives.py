"""What the ranks of a group do together in a round: one protocol, whatever carries it.

A collective is named by its purpose (kernels/cpu/library.py has the list), which errors and traffic are told by. Every
wait has a deadline. Under numerics "exact" no sum is split between ranks; `add` is for "fast".
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from outrider.workers.parallel.traffic import Traffic
from outrider.workers.types.errors import EngineStoppedError


class ExchangeBrokenError(EngineStoppedError):
    """A rank of a group is gone, or did not do its part in time; the message names it and the collective."""


class Collectives(Protocol):
    """One group, as one of its ranks sees it. Tensors are on the group's device; all methods block.

    ExchangeBrokenError where a rank fails; after that the group is of no use.
    """

    name: str  # of what carries it, in logs
    rank: int  # this one's place in the group
    size: int

    @property
    def traffic(self) -> Mapping[str, Traffic]:
        """By purpose."""
        ...

    def gather(self, part: Tensor, purpose: str, root: int | None = None) -> Tensor:
        """Every rank's `part`, all of one shape and type, by rank: [size, *shape]. With `root`, empty on the others."""
        ...

    def add(self, part: Tensor, purpose: str) -> Tensor:
        """The sum of every rank's `part`, all of one shape and type: the same bits on all ranks, in whatever order.

        It may be made where `part` is.
        """
        ...

    def exchange(self, sent: Tensor, sent_rows: Sequence[int], received_rows: Sequence[int], purpose: str) -> Tensor:
        """`sent_rows[r]` rows of `sent` [rows, ...] go to rank r, those of the lower ranks first; what came, likewise.

        `received_rows[r]` is how many rank r sends. None at all, and uneven numbers, are fine.
        """
        ...

    def close(self) -> None:
        """The others' waits for this rank end. May be called twice."""
        ...


class Alone:
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
    """What several groups carried together, by purpose."""
    total: dict[str, Traffic] = {}
    for group in groups:
        for purpose, traffic in group.traffic.items():
            total[purpose] = total.get(purpose, Traffic()) + traffic
    return total


def as_rows_of_bytes(tensor: Tensor) -> Tensor:
    """`tensor` [rows, ...] as uint8 [rows, bytes of a row]: every backend carries those."""
    return tensor.contiguous().view(tensor.shape[0], math.prod(tensor.shape[1:])).view(torch.uint8)
