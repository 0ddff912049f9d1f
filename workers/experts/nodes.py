"""Whether routing groups can stay whole on nodes, given where a replica's ranks stand. Pure."""

from collections.abc import Sequence

from outrider.workers.experts.placing import ExpertLayout
from outrider.workers.types.model_config import ModelConfig


def nodes_of_stages(machines: Sequence[str], stage_size: int) -> int:
    """Nodes that every stage stands on, with equally many of its ranks, one after another, on each; else 1.

    `machines` names each rank's, by rank. One number is for all stages: the leader lays out all layers alike.
    """
    stages = [machines[first : first + stage_size] for first in range(0, len(machines), stage_size)]
    counts = {_nodes(stage) for stage in stages}
    return counts.pop() if len(counts) == 1 else 1


def _nodes(machines: Sequence[str]) -> int:
    nodes = len(set(machines))
    each = len(machines) // nodes
    runs = [set(machines[first : first + each]) for first in range(0, len(machines), each)]
    return nodes if len(runs) == nodes and all(len(run) == 1 for run in runs) else 1


def expert_layout(model: ModelConfig, ranks: int, nodes: int, redundant_experts: int) -> ExpertLayout:
    """For the experts of a stage of `ranks` ranks on `nodes` nodes: hierarchical where the sizes allow it, else global.

    A token is routed to few groups (node-limited routing, DeepSeek-V3, arXiv 2412.19437, section 2.1.2): while each is
    whole on a node, its rows cross few borders between nodes.
    """
    everywhere = ExpertLayout(experts=model.n_routed_experts, ranks=ranks, redundant_experts=redundant_experts)
    if nodes == 1 or model.n_group == 1:
        return everywhere
    try:
        return ExpertLayout(
            experts=model.n_routed_experts,
            ranks=ranks,
            redundant_experts=redundant_experts,
            nodes=nodes,
            groups=model.n_group,
        )
    except ValueError:
        return everywhere
