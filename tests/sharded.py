"""Ranks of one stage as threads of this process: real groups in real shared memory, without processes or engine."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from outrider.kernels.cpu.shared_group import SharedGroup, make_memory
from outrider.workers.config import ParallelConfig
from outrider.workers.parallel.collectives.shared_collectives import SharedCollectives
from outrider.workers.parallel.mesh import Mesh
from outrider.workers.parallel.shard import Shard
from outrider.workers.parallel.sharing import Sharing
from outrider.workers.types.model.model_config import ModelConfig

T = TypeVar("T")
TIMEOUT_S = 20.0


def all_sharings(
    model: ModelConfig, parallel: ParallelConfig, timeout_s: float = TIMEOUT_S, redundant: int = 0, nodes: int = 1
) -> list[Sharing]:
    """Every rank's, of one stage that is said to stand on so many nodes."""
    mesh = Mesh.of(parallel)
    memory = {members: make_memory(len(members)) for members in mesh.groups().values()}
    found = []
    for rank in range(mesh.size):
        groups = {
            members: SharedCollectives(
                SharedGroup(descriptor, members.index(rank), len(members), timeout_s, shared_cores=True),
                [f"rank {member}" for member in members],
                timeout_s,
            )
            for members, descriptor in memory.items()
            if rank in members
        }
        found.append(Sharing.of(Shard.of(parallel, rank, model, redundant, nodes), groups, mesh, rank))
    for descriptor in memory.values():
        os.close(descriptor)
    return found


def on_all_ranks(sharings: Sequence[Sharing], work: Callable[[Sharing], T]) -> list[T]:
    """What `work` returns on each rank; all run at the same time."""
    with ThreadPoolExecutor(len(sharings)) as pool:
        return list(pool.map(work, sharings))


def close_all(sharings: Sequence[Sharing]) -> None:
    for sharing in sharings:
        for group in sharing.groups:
            group.close()
