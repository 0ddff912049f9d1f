"""Assigns ranks to nodes. Pure: takes the nodes' cores and devices, independent of Ray."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    node_id: str
    cores: float
    gpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """Consecutive ranks on one node, and the resources that each reserves."""

    ranks: tuple[int, ...]
    cores_per_rank: float
    gpus_per_rank: float
    threads_per_rank: int

    @property
    def resources(self) -> dict[str, float]:
        """Resources that the complete bundle reserves on its node."""
        wanted = {"CPU": self.cores_per_rank * len(self.ranks), "GPU": self.gpus_per_rank * len(self.ranks)}
        return {name: amount for name, amount in wanted.items() if amount > 0}


def choose_device(wanted: str, nodes: Sequence[Node]) -> str:
    """The wanted device. "auto" is "cuda" if any node has GPUs, else "cpu"."""
    if wanted != "auto":
        return wanted
    return "cuda" if any(node.gpus >= 1 for node in nodes) else "cpu"


def place(world_size: int, nodes: Sequence[Node], device: str) -> tuple[Bundle, ...]:
    """One bundle per node. Uses as few nodes as possible, the largest first.

    GPUs are never shared. If there are fewer cores than ranks, all ranks share one node's cores.
    """
    capacity = {node.node_id: int(node.gpus if device == "cuda" else node.cores) for node in nodes}
    roomiest = sorted(nodes, key=lambda node: (-capacity[node.node_id], node.node_id))
    if sum(capacity.values()) >= world_size:
        return _fill(world_size, roomiest, capacity, device)
    if device == "cuda":
        raise ValueError(f"{world_size} ranks need {world_size} GPUs, and the Ray cluster has {sum(capacity.values())}")
    if not any(capacity.values()):
        raise ValueError(f"{world_size} ranks need a CPU core, and no node of the Ray cluster has one")
    return (_bundle(range(world_size), roomiest[0], device),)


def _fill(world_size: int, nodes: Sequence[Node], capacity: dict[str, int], device: str) -> tuple[Bundle, ...]:
    bundles: list[Bundle] = []
    placed = 0
    for node in nodes:
        count = min(capacity[node.node_id], world_size - placed)
        if count > 0:
            bundles.append(_bundle(range(placed, placed + count), node, device))
            placed += count
    return tuple(bundles)


def _bundle(ranks: range, node: Node, device: str) -> Bundle:
    return Bundle(
        ranks=tuple(ranks),
        cores_per_rank=min(1.0, int(1000 * node.cores / len(ranks)) / 1000),
        gpus_per_rank=1.0 if device == "cuda" else 0.0,
        threads_per_rank=max(1, int(node.cores) // len(ranks)),
    )
