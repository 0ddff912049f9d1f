"""Memory that all GPUs of a group access, for collectives that wait on the device (kernels/gpu/reduce.py, gather.py,
dispatch.py).

It needs torch's symmetric memory: GPUs of one node, connected by NVLink. Elsewhere collectives use NCCL.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from outrider.kernels.gpu.gather import gather_columns
from outrider.kernels.gpu.reduce import MOST_ROWS
from outrider.workers.parallel import groups
from outrider.workers.parallel.collectives.collectives import Collectives
from outrider.workers.parallel.collectives.group_collectives import GroupCollectives

log = logging.getLogger("outrider.links")
_ALIGNED = 256  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerMemory:
    """From the view of one rank of `group`. The tensors are described in kernels/gpu/reduce.py."""

    addresses: Tensor
    epochs: Tensor
    rank: int
    group: str
    row_bytes: int
    kept: object = None  # keeps the memory alive

    @property
    def most_rows(self) -> int:
        return len(self.epochs)

    def holds(self, part: Tensor) -> bool:
        """Whether `part` is small enough for `gather`."""
        return len(part) <= self.most_rows and part.shape[1] * part.element_size() <= self.row_bytes

    def gather(self, part: Tensor) -> Tensor:
        """[R, w] of each rank -> [R, ranks * w], in rank order."""
        out: Tensor = gather_columns(part, self.addresses, self.epochs, self.row_bytes, self.rank, self.group)
        return out


class Area(NamedTuple):
    """A part of each rank's memory: twice so many rows of so many bytes, and flags of so many ranks for each."""

    rows: int
    row_bytes: int
    ranks: int


class OpenArea(NamedTuple):
    """Addresses [2, ranks] of data and flags, and epochs [rows], as in kernels/gpu/reduce.py."""

    addresses: Tensor
    epochs: Tensor
    row_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerAreas:
    """Areas of a group's memory. `group`: the name of its process group."""

    areas: tuple[OpenArea, ...]
    group: str
    kept: object = None  # keeps the memory alive


def open_peer_memory(
    tensor: Collectives, hidden_size: int, dtype: torch.dtype, device: torch.device
) -> PeerMemory | None:
    """None if the group cannot have it. Collective: every rank of the replica must call it."""
    opened = open_areas(tensor, [Area(MOST_ROWS, hidden_size * dtype.itemsize, tensor.size)], device, "sums")
    if opened is None:
        return None
    (area,) = opened.areas
    return PeerMemory(**area._asdict(), rank=tensor.rank, group=opened.group, kept=opened.kept)


def open_areas(group: Collectives, areas: Sequence[Area], device: torch.device, purpose: str) -> PeerAreas | None:
    """None if the group cannot have them. Collective: every rank of the replica must call it."""
    found = None
    if device.type == "cuda" and isinstance(group, GroupCollectives):
        try:
            found = _open(group, areas, device)
        except (ImportError, RuntimeError, AttributeError) as error:
            log.info("%s: over nccl: %s", purpose, str(error).splitlines()[0])
    everywhere = groups.all_reduce_min(int(found is not None))
    return found if everywhere else None


def _open(group: GroupCollectives, areas: Sequence[Area], device: torch.device) -> PeerAreas:
    import torch.distributed._symmetric_memory as symmetric  # not in every build

    sizes = [size for area in areas for size in (2 * area.rows * area.row_bytes, 2 * area.rows * area.ranks * 4)]
    begins = [0, *accumulate(-(-size // _ALIGNED) * _ALIGNED for size in sizes)]
    memory = symmetric.empty(begins[-1], dtype=torch.uint8, device=device)
    memory.zero_()
    name = group.process_group.group_name
    pointers = torch.tensor(list(symmetric.rendezvous(memory, name).buffer_ptrs), device=device)
    made = []
    for area, data, flags in zip(areas, begins[::2], begins[1::2], strict=False):
        addresses = torch.stack([pointers + data, pointers + flags])
        made.append(OpenArea(addresses, torch.zeros(area.rows, dtype=torch.int32, device=device), area.row_bytes))
    return PeerAreas(areas=tuple(made), group=name, kept=memory)
