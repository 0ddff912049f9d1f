"""The current nodes of the Ray cluster, their resources and free resources."""

from collections.abc import Collection, Mapping
from typing import Any

import ray

from outrider.cluster.controller.gangs.placement import NodeResources

DOMAIN_LABEL = "ray.io/gpu-domain"  # node label: nodes of one domain have a fast link between their GPUs


def survey() -> list[NodeResources]:
    """The schedulable nodes: without those being drained."""
    free = ray._private.state.available_resources_per_node()
    draining = draining_nodes()
    return [_node_resources(row, free.get(row["NodeID"], {})) for row in ray.nodes() if _takes_work(row, draining)]


def _node_resources(row: Mapping[str, Any], free: Mapping[str, float]) -> NodeResources:
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


def _takes_work(row: Mapping[str, Any], draining: Collection[str]) -> bool:
    return row["Alive"] and row["NodeID"] not in draining


def draining_nodes() -> Collection[str]:
    """Ids of nodes that Ray drains; empty if this version of Ray cannot list them."""
    try:
        return set(ray._private.state.state.get_draining_nodes())
    except AttributeError:
        return ()
