"""Expert loads -> where the copies of each expert go. Pure; does not know processes or weights.

The idea is EPLB's (github.com/deepseek-ai/EPLB): experts with high load get redundant copies, and copies are packed so
that ranks have equal loads. `groups > 1` first packs whole routing groups onto nodes (hierarchical). A token is routed
to few groups, so it crosses few node boundaries. If the present placement is given, few experts move.
"""

from dataclasses import dataclass

import numpy as np

from outrider.workers.experts.moves import adjust, nearest_order
from outrider.workers.experts.packing import FloatArray, bin_loads, pack
from outrider.workers.experts.placement import ExpertPlacement, IntArray, round_robin_table

_EVEN = 5e-4  # relative to the mean; a smaller excess is not worth a move


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertLayout:
    """The sizes of a placement. ValueError, naming the sizes, if experts cannot be placed with them."""

    experts: int
    ranks: int
    redundant_experts: int = 0  # spare slots over all ranks
    nodes: int = 1
    groups: int = 1  # routing groups, each kept on one node; 1: experts may be anywhere (global)

    def __post_init__(self) -> None:
        if min(self.experts, self.ranks, self.nodes, self.groups) < 1 or self.redundant_experts < 0:
            raise ValueError(f"sizes of an expert layout must be positive, got {self}")
        if self.ranks % self.nodes or self.slots % self.ranks:
            raise ValueError(
                f"{self.experts} experts and {self.redundant_experts} redundant ones do not spread evenly over"
                f" {self.ranks} ranks on {self.nodes} nodes"
            )
        if self.groups > 1 and (self.groups % self.nodes or self.experts % self.groups or self.slots % self.nodes):
            raise ValueError(f"{self.groups} groups of {self.experts} experts do not spread over {self.nodes} nodes")
        if self.slots_per_rank > self.experts // self.parts:
            raise ValueError(f"{self.slots} slots would put two copies of one of {self.experts} experts on one rank")

    @property
    def slots(self) -> int:
        return self.experts + self.redundant_experts

    @property
    def slots_per_rank(self) -> int:
        return self.slots // self.ranks

    @property
    def parts(self) -> int:
        """The number of nodes that are packed separately."""
        return self.nodes if self.groups > 1 else 1

    def first_table(self) -> IntArray:
        """Which expert each slot of a layer holds before loads are known, [ranks, slots per rank]."""
        return round_robin_table(self.experts, self.slots, self.ranks, self.parts)


def place_experts(
    loads: FloatArray, layout: ExpertLayout, present: ExpertPlacement | None = None, tolerance: float = 0.02
) -> ExpertPlacement:
    """The placement for `loads` [layers, experts]: the rows that each expert got.

    With `present`, it moves only as many experts as needed so that no rank's load exceeds 1 + `tolerance` times the
    heaviest rank of a new placement. ValueError if loads are not finite and >= 0, or do not fit the layout.
    """
    loads = _checked(loads, layout)
    members = _spread_groups(loads, layout)  # [layers, nodes, experts a node], or one node that has them all
    fresh = _pack_nodes(loads, members, layout)
    if present is None:
        return ExpertPlacement(fresh, layout.experts)
    if present.experts.shape != fresh.shape:
        raise ValueError(f"the present placement is {present.experts.shape}, the layout needs {fresh.shape}")
    limit = rank_loads(loads, ExpertPlacement(fresh, layout.experts)).max(axis=1) * (1 + tolerance)
    adjusted = adjust(loads, present.experts, limit, layout.parts)
    heaviest = rank_loads(loads, ExpertPlacement(adjusted, layout.experts)).max(axis=1)
    anew = heaviest > limit * (1 + 1e-9)  # [layers] where small changes do not suffice
    adjusted[anew] = nearest_order(fresh[anew], present.experts[anew], layout.parts)
    return ExpertPlacement(adjusted, layout.experts)


def rank_loads(loads: FloatArray, placement: ExpertPlacement) -> FloatArray:
    """The load of each rank, [layers, ranks]. An expert's load is split evenly over its copies."""
    return bin_loads(np.asarray(loads, dtype=np.float64) / placement.copies, placement.experts)


def imbalance(loads: FloatArray, placement: ExpertPlacement) -> FloatArray:
    """Load of the heaviest rank over the mean, [layers]; 1 for a layer without load."""
    carried = rank_loads(loads, placement)
    mean = carried.mean(axis=1)
    return np.asarray(np.divide(carried.max(axis=1), mean, out=np.ones_like(mean), where=mean > 0))


def _checked(loads: FloatArray, layout: ExpertLayout) -> FloatArray:
    loads = np.asarray(loads, dtype=np.float64)
    if loads.ndim != 2 or loads.shape[1] != layout.experts:
        raise ValueError(f"loads must be [layers, {layout.experts}], got {list(loads.shape)}")
    if not np.isfinite(loads).all() or (loads < 0).any():
        raise ValueError("loads must be finite and at least 0")
    return loads


def _spread_groups(loads: FloatArray, layout: ExpertLayout) -> IntArray:
    """The experts of each node: whole groups, spread by load."""
    layers = len(loads)
    if layout.parts == 1:
        return np.broadcast_to(np.arange(layout.experts), (layers, 1, layout.experts))
    group_loads = loads.reshape(layers, layout.groups, -1).sum(axis=2)
    even = group_loads.sum(axis=1) / layout.nodes
    groups = np.sort(pack(group_loads, layout.groups, layout.nodes, even), axis=2)  # [layers, nodes, groups a node]
    size = layout.experts // layout.groups
    return (groups[..., None] * size + np.arange(size)).reshape(layers, layout.nodes, -1)


def _pack_nodes(loads: FloatArray, members: IntArray, layout: ExpertLayout) -> IntArray:
    """Packs each node's experts onto its ranks, [layers, ranks, slots per rank]."""
    layers, parts, experts = members.shape
    ranks = layout.ranks // parts
    own = np.take_along_axis(loads, members.reshape(layers, -1), axis=1).reshape(layers, parts, experts)
    node_loads = own.sum(axis=2)  # [layers, nodes]
    least = node_loads.max(axis=1) / ranks  # [layers], the lowest possible load of the most loaded rank
    goal = np.repeat(least * (1 + _EVEN), parts)
    local = pack(
        own.reshape(layers * parts, experts), layout.slots // parts, ranks, goal
    )  # [layers * parts, ranks, slots]
    chosen = np.take_along_axis(members.reshape(layers * parts, experts), local.reshape(layers * parts, -1), axis=1)
    return chosen.reshape(layers, layout.ranks, -1)
