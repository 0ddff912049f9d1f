"""Whether routing groups can be kept on one node each, given the machines of a replica's ranks. Pure."""

from collections.abc import Sequence

from outrider.workers.experts.placing import ExpertLayout
from outrider.workers.types.model.model_config import ModelConfig


def nodes_of_stages(machines: Sequence[str], stage_size: int) -> int:
    """Nodes per stage if all stages have equally many nodes, with equally many consecutive ranks on each; else 1.

    `machines` names the machine of each rank. The number applies to all stages, since the leader places all layers in
    the same way.
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
    """The layout of a stage with `ranks` ranks on `nodes` nodes: hierarchical if the sizes allow it, else global.

    Routing sends a token to few groups (node-limited routing, DeepSeek-V3, arXiv 2412.19437, section 2.1.2). If each
    group is on one node, its rows cross few node boundaries.
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
