"""Memory that all GPUs of a tensor group read and write, for sums in one launch (kernels/gpu/reduce.py).

There where torch's symmetric memory can be had: GPUs of one node joined by NVLink. Elsewhere sums go by NCCL.
"""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from outrider.kernels.gpu.reduce import MOST_ROWS
from outrider.workers.parallel import groups
from outrider.workers.parallel.collectives import Collectives
from outrider.workers.parallel.group_collectives import GroupCollectives

log = logging.getLogger("outrider.links")
_ALIGNED = 256  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerMemory:
    """As one rank of `group` sees it; tensors as reduce.py has them."""

    addresses: Tensor
    epochs: Tensor
    rank: int
    group: str
    kept: object = None  # what owns the memory

    @property
    def most_rows(self) -> int:
        return len(self.epochs)


def meet_in_peer_memory(
    tensor: Collectives, hidden_size: int, dtype: torch.dtype, device: torch.device
) -> PeerMemory | None:
    """None where the group has none. Every rank of the replica must call it, at the same place."""
    found = None
    if device.type == "cuda" and isinstance(tensor, GroupCollectives):
        try:
            found = _open(tensor, hidden_size, dtype, device)
        except (ImportError, RuntimeError, AttributeError) as error:
            log.info("sums go over nccl: %s", str(error).splitlines()[0])
    everywhere = groups.agree_on_minimum(int(found is not None))
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
    return PeerMemory(addresses=addresses, epochs=epochs, rank=tensor.rank, group=name, kept=memory)
