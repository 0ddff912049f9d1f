"""EPLB's algorithm, written anew from its published description (github.com/deepseek-ai/EPLB), plainly: for comparison.

Hierarchical: groups are packed onto nodes, each node's experts get its redundant copies, each node's copies are packed
onto its GPUs. Global is the same with one node that holds everything. Packing takes items from the heaviest down and
gives each to the lightest pack that has room; a spare copy goes to the expert whose copies are heaviest.
"""


def rebalance(
    loads: list[list[float]], *, slots: int, groups: int, nodes: int, gpus: int
) -> tuple[list[list[list[int]]], list[list[int]]]:
    """For each layer: the experts of each GPU, and each expert's number of copies."""
    if groups == 1 or groups % nodes:
        groups = nodes = 1
    placed, counted = [], []
    for layer in loads:
        on_gpus, copies = _place_layer(layer, slots, groups, nodes, gpus)
        placed.append(on_gpus)
        counted.append(copies)
    return placed, counted


def _place_layer(
    loads: list[float], slots: int, groups: int, nodes: int, gpus: int
) -> tuple[list[list[int]], list[int]]:
    size = len(loads) // groups
    group_loads = [sum(loads[group * size : (group + 1) * size]) for group in range(groups)]
    gpu_experts: list[list[int]] = []
    copies = [0] * len(loads)
    for node_groups in pack(group_loads, nodes):
        experts = [expert for group in node_groups for expert in range(group * size, (group + 1) * size)]
        held = replicate([loads[expert] for expert in experts], slots // nodes)
        items = [
            (experts[local], loads[experts[local]] / count) for local, count in enumerate(held) for _ in range(count)
        ]
        for local, count in enumerate(held):
            copies[experts[local]] = count
        packed = pack([weight for _, weight in items], gpus // nodes)
        gpu_experts += [[items[item][0] for item in gpu] for gpu in packed]
    return gpu_experts, copies


def replicate(loads: list[float], slots: int) -> list[int]:
    copies = [1] * len(loads)
    for _ in range(slots - len(loads)):
        heaviest = max(range(len(loads)), key=lambda expert: loads[expert] / copies[expert])
        copies[heaviest] += 1
    return copies


def pack(weights: list[float], packs: int) -> list[list[int]]:
    room = len(weights) // packs
    packed: list[list[int]] = [[] for _ in range(packs)]
    carried = [0.0] * packs
    for item in sorted(range(len(weights)), key=lambda item: -weights[item]):
        lightest = min((p for p in range(packs) if len(packed[p]) < room), key=carried.__getitem__)
        packed[lightest].append(item)
        carried[lightest] += weights[item]
    return packed


def imbalance(loads: list[float], gpus: list[list[int]], copies: list[int]) -> float:
    """The heaviest GPU over the mean."""
    carried = [sum(loads[expert] / copies[expert] for expert in experts) for experts in gpus]
    return max(carried) / (sum(carried) / len(carried))
