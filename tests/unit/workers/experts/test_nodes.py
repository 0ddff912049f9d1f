"""Routing groups stay whole on nodes where ranks stand on several, and the sizes allow it."""

import dataclasses

import numpy as np
import pytest

from outrider.workers.config import resolve_model
from outrider.workers.experts.nodes import expert_layout, nodes_of_stages
from outrider.workers.types.model.model_config import ModelConfig

SCOUT = ModelConfig.load(resolve_model("scout"))  # one group
R1 = dataclasses.replace(SCOUT, n_routed_experts=256, n_group=8)


@pytest.mark.parametrize(
    ("machines", "stage_size", "nodes"),
    [
        ("aaaa", 4, 1),
        ("aabb", 4, 2),
        ("aabb", 2, 1),  # a stage on each
        ("aabbccdd", 4, 2),
        ("aabbcccc", 4, 1),  # the stages differ
        ("abab", 4, 1),  # not one after another
        ("abbb", 4, 1),  # not equally many
        ("aabbb", 5, 1),
    ],
)
def test_nodes_count_where_every_stage_has_equally_many_ranks_on_each(
    machines: str, stage_size: int, nodes: int
) -> None:
    assert nodes_of_stages(machines, stage_size) == nodes


def test_an_r1_on_four_nodes_has_two_groups_on_each_from_the_beginning() -> None:
    layout = expert_layout(R1, ranks=32, nodes=4, redundant_experts=32)

    by_node = np.unique(layout.first_table().reshape(4, -1) // 32, axis=1)  # groups of 32 experts
    assert (layout.nodes, layout.groups, layout.slots_per_rank) == (4, 8, 9)
    assert [sorted(set(groups.tolist())) for groups in by_node] == [[0, 1], [2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize(
    ("model", "ranks", "nodes", "redundant"),
    [
        (R1, 32, 1, 32),
        (SCOUT, 4, 2, 0),  # has no groups
        (R1, 48, 3, 32),  # 8 groups on 3 nodes
        (R1, 16, 16, 0),  # fewer groups than nodes
    ],
)
def test_else_experts_go_anywhere(model: ModelConfig, ranks: int, nodes: int, redundant: int) -> None:
    layout = expert_layout(model, ranks, nodes, redundant)

    assert (layout.parts, layout.redundant_experts) == (1, redundant)
