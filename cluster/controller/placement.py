"""Where a gang can go now, and if nowhere, what it waits for. Pure: the Ray cluster's nodes arrive as values.

How ranks fill the nodes is topology.py's; here it is which nodes are offered, and what to say when they are too few.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from outrider.cluster.controller.topology import Bundle, Node, place

USUAL_GPUS = 8  # of a node, where no node shows how many there are
SHARED_CORES = 0.01  # what a rank reserves of a machine that is ours alone: nothing that anybody would miss


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeResources:
    """A node: its resources, and those that are not reserved."""

    node_id: str
    name: str
    cores: float
    gpus: float
    free_cores: float
    free_gpus: float
    domain: str = ""  # where its GPUs have a fast link; empty: not known

    def count(self, device: str, *, free: bool) -> int:
        """Ranks that it can take."""
        if device == "cuda":
            return int(self.free_gpus if free else self.gpus)
        return int(self.free_cores if free else self.cores)


@dataclass(frozen=True, slots=True, kw_only=True)
class GangResources:
    """What a gang needs."""

    world_size: int
    device: str
    group_size: int = 1  # consecutive ranks that must share a node
    ranks_per_node: int | None = None  # of the nodes that may yet come; None: as those that are there
    shares_cores: bool = False  # the machine is ours alone: CPU ranks may crowd
    replicas: int = 1  # that share those cores


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Bundles to ask Ray for, and why they cannot be had yet; empty when they can."""

    bundles: tuple[Bundle, ...]
    domain: str = ""  # all of its nodes are in this one
    shortage: str = ""


def arrange(wanted: GangResources, rooms: Sequence[NodeResources]) -> Placement:
    """One bundle a node: on nodes with room now, within one domain if a domain has it, else what to wait for."""
    if wanted.device == "cpu" and (wanted.shares_cores or _is_crowded(wanted, rooms)):
        return _crowded(wanted, rooms)
    for domain, offered in _offers(wanted, rooms):
        if _capacity(wanted, offered, free=True) >= wanted.world_size:
            nodes = [_node(room, wanted) for room in offered]
            return Placement(bundles=place(wanted.world_size, nodes, wanted.device), domain=domain)
    return _shortage(wanted, rooms)


def _is_crowded(wanted: GangResources, rooms: Sequence[NodeResources]) -> bool:
    """Whether the fleet, even if it were idle, has fewer cores than the gang has ranks."""
    return bool(rooms) and 0 < sum(room.count("cpu", free=False) for room in rooms) < wanted.world_size


def _crowded(wanted: GangResources, rooms: Sequence[NodeResources]) -> Placement:
    """All ranks on the roomiest node, which they share."""
    nodes = [Node(node_id=room.node_id, cores=room.cores, gpus=0.0) for room in rooms]
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


def _offers(wanted: GangResources, rooms: Sequence[NodeResources]) -> Iterable[tuple[str, Sequence[NodeResources]]]:
    """The sets of nodes that a gang may span, the best first: each domain, the fullest that may hold it first; all
    nodes only where there are no domains, or none is large enough."""
    domains = _domains(wanted, rooms)
    yield from sorted(domains.items(), key=lambda item: (_capacity(wanted, item[1], free=True), item[0]))
    if all(_capacity(wanted, some, free=False) < wanted.world_size for some in domains.values()):
        yield "", rooms


def _domains(wanted: GangResources, rooms: Sequence[NodeResources]) -> dict[str, list[NodeResources]]:
    names = {room.domain for room in rooms if room.domain} if wanted.device == "cuda" else set()
    return {name: [room for room in rooms if room.domain == name] for name in names}


def _capacity(wanted: GangResources, rooms: Sequence[NodeResources], *, free: bool) -> int:
    return sum(_usable(room, wanted, free=free) for room in rooms)


def _usable(room: NodeResources, wanted: GangResources, *, free: bool) -> int:
    """Ranks that it takes in whole groups."""
    return room.count(wanted.device, free=free) // wanted.group_size * wanted.group_size


def _node(room: NodeResources, wanted: GangResources) -> Node:
    usable = _usable(room, wanted, free=True)
    if wanted.device == "cuda":
        return Node(node_id=room.node_id, cores=room.free_cores, gpus=usable)
    return Node(node_id=room.node_id, cores=usable, gpus=0.0)


def _shortage(wanted: GangResources, rooms: Sequence[NodeResources]) -> Placement:
    """Bundles for nodes of the largest kind, which an autoscaler may bring, and a line that says what is missing."""
    size = wanted.ranks_per_node or max((_usable(room, wanted, free=False) for room in rooms), default=0)
    size = size or (min(wanted.world_size, USUAL_GPUS) if wanted.device == "cuda" else wanted.world_size)
    full, rest = divmod(wanted.world_size, size)
    sizes = [size] * full + [rest] * (rest > 0)
    nodes = [_whole_node(n, ranks, wanted.device) for n, ranks in enumerate(sizes)]
    message = f"need {_list(_counts(sizes), wanted.device)}, have {_what_there_is(wanted, rooms, sum(sizes))}"
    return Placement(bundles=place(wanted.world_size, nodes, wanted.device), shortage=message)


def _whole_node(number: int, ranks: int, device: str) -> Node:
    return Node(node_id=f"{number:06}", cores=float(ranks), gpus=float(ranks if device == "cuda" else 0))


def _what_there_is(wanted: GangResources, rooms: Sequence[NodeResources], needed: int) -> str:
    """By size; what is free of it, where there would be enough if all of it were free."""
    sizes = [room.count(wanted.device, free=False) for room in rooms]
    has = [size for size in sizes if size > 0]
    if not has:
        return "none"
    domains = len(_domains(wanted, rooms))
    if sum(has) < needed:
        return _list(_counts(has), "")
    free = sorted((room.count(wanted.device, free=True), size) for room, size in zip(rooms, sizes, strict=True) if size)
    counted = Counter(reversed(free))
    listed = " and ".join(f"{count} with {ranks} of {size} free" for (ranks, size), count in counted.items())
    return listed + (f", in {domains} domains" if domains > 1 else "")


def _counts(sizes: Iterable[int]) -> list[tuple[int, int]]:
    """(size, how many), the largest first."""
    return sorted(Counter(sizes).items(), reverse=True)


def _list(counts: Sequence[tuple[int, int]], device: str) -> str:
    """ "2 nodes with 8 GPUs and 1 with 4"; without a device, "1 with 8 and 1 with 4"."""
    if not device:
        return " and ".join(f"{count} with {size}" for size, count in counts)
    (size, count), *others = counts
    unit = "GPU" if device == "cuda" else "free core"
    first = f"{count} {'node' if count == 1 else 'nodes'} with {size} {unit}{'' if size == 1 else 's'}"
    return " and ".join([first, *(f"{n} with {size}" for size, n in others)])
