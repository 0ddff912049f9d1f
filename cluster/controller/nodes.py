"""The Ray cluster's nodes as they are now: which take work, what they have and what of it is free."""

from collections.abc import Collection, Mapping
from typing import Any

import ray

from outrider.cluster.controller.placement import NodeResources

DOMAIN_LABEL = "ray.io/gpu-domain"  # of a node: where its GPUs have a fast link


def survey() -> list[NodeResources]:
    """The nodes that take work now: those that are being drained do not."""
    free = ray._private.state.available_resources_per_node()
    leaving = draining_nodes()
    return [_room(row, free.get(row["NodeID"], {})) for row in ray.nodes() if _takes_work(row, leaving)]


def _room(row: Mapping[str, Any], free: Mapping[str, float]) -> NodeResources:
    has = row["Resources"]
    return NodeResources(
        node_id=row["NodeID"],
        name=f"node {row['NodeManagerAddress']} (id {row['NodeID'][:12]})",
        cores=has.get("CPU", 0.0),
        gpus=has.get("GPU", 0.0),
        free_cores=free.get("CPU", 0.0),
        free_gpus=free.get("GPU", 0.0),
        domain=row.get("Labels", {}).get(DOMAIN_LABEL, ""),
    )


def _takes_work(row: Mapping[str, Any], leaving: Collection[str]) -> bool:
    return row["Alive"] and row["NodeID"] not in leaving


def draining_nodes() -> Collection[str]:
    """Ids of nodes that Ray has been told to empty; none where this version of Ray cannot say."""
    try:
        return set(ray._private.state.state.get_draining_nodes())
    except AttributeError:
        return ()
