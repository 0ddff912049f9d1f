"""Memory that all GPUs of a tensor group access, for one-launch collectives (kernels/gpu/reduce.py, gather.py).

It needs torch's symmetric memory: GPUs of one node, connected by NVLink. Elsewhere collectives use NCCL.
"""

import logging
from dataclasses import dataclass

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


def open_peer_memory(
    tensor: Collectives, hidden_size: int, dtype: torch.dtype, device: torch.device
) -> PeerMemory | None:
    """None if the group cannot have it. Collective: every rank of the replica must call it."""
    found = None
    if device.type == "cuda" and isinstance(tensor, GroupCollectives):
        try:
            found = _open(tensor, hidden_size, dtype, device)
        except (ImportError, RuntimeError, AttributeError) as error:
            log.info("sums go over nccl: %s", str(error).splitlines()[0])
    everywhere = groups.all_reduce_min(int(found is not None))
    return found if everywhere else None


def _open(tensor: GroupCollectives, hidden_size: int, dtype: torch.dtype, device: torch.device) -> PeerMemory:
    import torch.distributed._symmetric_memory as symmetric  # not in every build

    data = 2 * MOST_ROWS * hidden_size * dtype.itemsize
    first_flag = -(-data // _ALIGNED) * _ALIGNED
    memory = symmetric.empty(first_flag + 2 * MOST_ROWS * tensor.size * 4, dtype=torch.uint8, device=device)
    memory.zero_()
    name = tensor.process_group.group_name
    pointers = list(symmetric.rendezvous(memory, name).buffer_ptrs)
    addresses = torch.tensor([pointers, [pointer + first_flag for pointer in pointers]], device=device)
    epochs = torch.zeros(MOST_ROWS, dtype=torch.int32, device=device)
    return PeerMemory(
        addresses=addresses, epochs=epochs, rank=tensor.rank, group=name, row_bytes=hidden_size * dtype.itemsize,
        kept=memory,
    )  # fmt: skip
