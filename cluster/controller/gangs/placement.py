"""Chooses the nodes for a gang, or explains what resources are missing. Pure: takes the Ray cluster's nodes as values.

topology.py distributes ranks over nodes; this module chooses which nodes it may use.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from outrider.cluster.controller.gangs.topology import Bundle, Node, place

USUAL_GPUS = 8  # assumed GPUs of a node, if there is no node yet
SHARED_CORES = 0.01  # a rank's reservation if the Ray cluster is not shared: small enough that ranks can share a core


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeResources:
    """A node's total and unreserved resources."""

    node_id: str
    name: str
    cores: float
    gpus: float
    free_cores: float
    free_gpus: float
    domain: str = ""  # nodes of one domain have a fast link between their GPUs; empty: not known

    def count(self, device: str, *, free: bool) -> int:
        """Number of ranks that fit on it."""
        if device == "cuda":
            return int(self.free_gpus if free else self.gpus)
        return int(self.free_cores if free else self.cores)


@dataclass(frozen=True, slots=True, kw_only=True)
class GangResources:
    """The resources that a gang needs."""

    world_size: int
    device: str
    group_size: int = 1  # consecutive ranks that must share a node
    ranks_per_node: int | None = None  # on nodes that an autoscaler adds; None: as on existing nodes
    shares_cores: bool = False  # the Ray cluster is not shared: CPU ranks may share cores
    replicas: int = 1  # number of replicas that share those cores


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Bundles to request from Ray. `shortage`: why they cannot be placed yet; empty if they can."""

    bundles: tuple[Bundle, ...]
    domain: str = ""  # the domain of all of its nodes, if they share one
    shortage: str = ""


def arrange(wanted: GangResources, fleet: Sequence[NodeResources]) -> Placement:
    """One bundle per node, on nodes with free resources, within one domain if possible. Otherwise with a shortage."""
    if wanted.device == "cpu" and (wanted.shares_cores or _is_crowded(wanted, fleet)):
        return _crowded(wanted, fleet)
    for domain, offered in _offers(wanted, fleet):
        if _capacity(wanted, offered, free=True) >= wanted.world_size:
            nodes = [_node(node, wanted) for node in offered]
            return Placement(bundles=place(wanted.world_size, nodes, wanted.device), domain=domain)
    return _shortage(wanted, fleet)


def _is_crowded(wanted: GangResources, fleet: Sequence[NodeResources]) -> bool:
    """Whether all nodes together have fewer cores than the gang has ranks, counting reserved cores."""
    return bool(fleet) and 0 < sum(node.count("cpu", free=False) for node in fleet) < wanted.world_size


def _crowded(wanted: GangResources, fleet: Sequence[NodeResources]) -> Placement:
    """All ranks on the largest node, sharing its cores."""
    nodes = [Node(node_id=node.node_id, cores=node.cores, gpus=0.0) for node in fleet]
    bundles = place(wanted.world_size, nodes, "cpu")
    if wanted.shares_cores:
        bundles = tuple(
            replace(
                bundle,
                cores_per_rank=SHARED_CORES,
                threads_per_rank=max(1, bundle.threads_per_rank // wanted.replicas),
            )
            for bundle in bundles
        )
    return Placement(bundles=bundles)


def _offers(wanted: GangResources, fleet: Sequence[NodeResources]) -> Iterable[tuple[str, Sequence[NodeResources]]]:
    """The sets of nodes that a gang may use, in order of preference.

    First each domain, those with the least free capacity first. All nodes, if no domain is large enough.
    """
    domains = _domains(wanted, fleet)
    yield from sorted(domains.items(), key=lambda item: (_capacity(wanted, item[1], free=True), item[0]))
    if all(_capacity(wanted, some, free=False) < wanted.world_size for some in domains.values()):
        yield "", fleet


def _domains(wanted: GangResources, fleet: Sequence[NodeResources]) -> dict[str, list[NodeResources]]:
    names = {node.domain for node in fleet if node.domain} if wanted.device == "cuda" else set()
    return {name: [node for node in fleet if node.domain == name] for name in names}


def _capacity(wanted: GangResources, fleet: Sequence[NodeResources], *, free: bool) -> int:
    return sum(_usable(node, wanted, free=free) for node in fleet)


def _usable(node: NodeResources, wanted: GangResources, *, free: bool) -> int:
    """Number of ranks that fit on it in complete groups."""
    return node.count(wanted.device, free=free) // wanted.group_size * wanted.group_size


def _node(node: NodeResources, wanted: GangResources) -> Node:
    usable = _usable(node, wanted, free=True)
    if wanted.device == "cuda":
        return Node(node_id=node.node_id, cores=node.free_cores, gpus=usable)
    return Node(node_id=node.node_id, cores=usable, gpus=0.0)


def _shortage(wanted: GangResources, fleet: Sequence[NodeResources]) -> Placement:
    """Bundles for nodes of the largest size, which an autoscaler may add, and a message about what is missing."""
    size = wanted.ranks_per_node or max((_usable(node, wanted, free=False) for node in fleet), default=0)
    size = size or (min(wanted.world_size, USUAL_GPUS) if wanted.device == "cuda" else wanted.world_size)
    full, rest = divmod(wanted.world_size, size)
    sizes = [size] * full + [rest] * (rest > 0)
    nodes = [_whole_node(n, ranks, wanted.device) for n, ranks in enumerate(sizes)]
    message = f"need {_list(_counts(sizes), wanted.device)}, have {_what_there_is(wanted, fleet, sum(sizes))}"
    return Placement(bundles=place(wanted.world_size, nodes, wanted.device), shortage=message)


def _whole_node(number: int, ranks: int, device: str) -> Node:
    return Node(node_id=f"{number:06}", cores=float(ranks), gpus=float(ranks if device == "cuda" else 0))


def _what_there_is(wanted: GangResources, fleet: Sequence[NodeResources], needed: int) -> str:
    """Nodes by size. If they would suffice when idle, also what is free on them."""
    sizes = [node.count(wanted.device, free=False) for node in fleet]
    has = [size for size in sizes if size > 0]
    if not has:
        return "none"
    domains = len(_domains(wanted, fleet))
    if sum(has) < needed:
        return _list(_counts(has), "")
    free = sorted((node.count(wanted.device, free=True), size) for node, size in zip(fleet, sizes, strict=True) if size)
    counted = Counter(reversed(free))
    listed = " and ".join(f"{count} with {ranks} of {size} free" for (ranks, size), count in counted.items())
    return listed + (f", in {domains} domains" if domains > 1 else "")


def _counts(sizes: Iterable[int]) -> list[tuple[int, int]]:
    """(size, number of nodes), the largest size first."""
    return sorted(Counter(sizes).items(), reverse=True)


def _list(counts: Sequence[tuple[int, int]], device: str) -> str:
    """ "2 nodes with 8 GPUs and 1 with 4"; without a device, "1 with 8 and 1 with 4"."""
    if not device:
        return " and ".join(f"{count} with {size}" for size, count in counts)
    (size, count), *others = counts
    unit = "GPU" if device == "cuda" else "free core"
    first = f"{count} {'node' if count == 1 else 'nodes'} with {size} {unit}{'' if size == 1 else 's'}"
    return " and ".join([first, *(f"{n} with {size}" for size, n in others)])
