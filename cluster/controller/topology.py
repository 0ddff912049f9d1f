"""Which rank sits on which node. Pure: knows the fleet by its cores and devices, and nothing of Ray."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    node_id: str
    cores: float
    gpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """One node's share of a gang: consecutive ranks, and what each of them reserves."""

    ranks: tuple[int, ...]
    cores_per_rank: float
    gpus_per_rank: float
    threads_per_rank: int

    @property
    def resources(self) -> dict[str, float]:
        """What the whole bundle reserves of its node."""
        wanted = {"CPU": self.cores_per_rank * len(self.ranks), "GPU": self.gpus_per_rank * len(self.ranks)}
        return {name: amount for name, amount in wanted.items() if amount > 0}


def choose_device(wanted: str, nodes: Sequence[Node]) -> str:
    """ "cuda" or "cpu" for "auto": GPUs if the fleet has any."""
    if wanted != "auto":
        return wanted
    return "cuda" if any(node.gpus >= 1 for node in nodes) else "cpu"


def place(world_size: int, nodes: Sequence[Node], device: str) -> tuple[Bundle, ...]:
    """One bundle a node, with all of its ranks; as few nodes as hold them, the roomiest first.

    GPUs are never shared. Cores are, when the fleet has fewer of them than ranks: then one node takes all.
    """
    capacity = {node.node_id: int(node.gpus if device == "cuda" else node.cores) for node in nodes}
    roomiest = sorted(nodes, key=lambda node: (-capacity[node.node_id], node.node_id))
    if sum(capacity.values()) >= world_size:
        return _fill(world_size, roomiest, capacity, device)
    if device == "cuda":
        raise ValueError(f"{world_size} ranks need as many GPUs, and the Ray cluster has {sum(capacity.values())}")
    if not any(capacity.values()):
        raise ValueError(f"{world_size} ranks need a CPU core, and the Ray cluster has no node that offers one")
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
