"""The four parallel sizes of a replica, and how its groups are placed on nodes. Pure.

Ranks are numbered pipeline x data x tensor, tensor innermost. Node n has the ranks from n * gpus_per_node on.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from outrider.workers.config import ParallelConfig
from outrider.workers.parallel.shard import check_split
from outrider.workers.types.model.model_config import ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """World size = pipeline x data x tensor. `expert`: 1 (experts split like dense layers) or data x tensor (whole)."""

    tensor: int = 1
    pipeline: int = 1
    expert: int = 1
    data: int = 1

    @property
    def world_size(self) -> int:
        return self.pipeline * self.data * self.tensor

    @property
    def stage_size(self) -> int:
        return self.data * self.tensor

    @property
    def spread(self) -> bool:
        """Whether whole experts are distributed over a stage's ranks."""
        return self.expert > 1

    @property
    def dispatches(self) -> bool:
        """Whether rows are sent to experts of other data groups."""
        return self.spread and self.data > 1

    def parallel(self) -> ParallelConfig:
        """Raises ValueError if `expert` is neither 1 nor data x tensor."""
        return ParallelConfig(
            tensor_parallel_size=self.tensor,
            pipeline_parallel_size=self.pipeline,
            expert_parallel_size=self.expert,
            data_parallel_size=self.data,
        )

    def group_size(self, group: str) -> int:
        """Number of ranks of a "tensor" or "stage" group."""
        return self.tensor if group == "tensor" else self.stage_size

    def __str__(self) -> str:
        named = {"TP": self.tensor, "PP": self.pipeline, "DP": self.data, "EP": self.expert}
        return " ".join(f"{name}{size}" for name, size in named.items() if size > 1) or "unsplit"


def refusal(model: ModelConfig, split: Split, redundant_experts: int = 0) -> str | None:
    """Why `model` cannot be split with these sizes, naming both values; None if it can."""
    experts = model.n_routed_experts + redundant_experts
    if split.pipeline > model.num_hidden_layers:
        return f"pipeline_parallel_size={split.pipeline} is more than the model's {model.num_hidden_layers} layers"
    if redundant_experts and experts > model.n_routed_experts * split.expert:
        return f"{redundant_experts} redundant experts would put two copies of one on a rank of {split}"
    try:
        check_split(replace(model, n_routed_experts=experts), split.parallel())
    except ValueError as error:
        return str(error)
    return None


def splits(model: ModelConfig, most_ranks: int, redundant_experts: int = 0) -> Iterator[Split]:
    """All splits that the model allows over up to `most_ranks` ranks: powers of two, and divisors of the fleet."""
    factors = sorted({n for n in range(1, most_ranks + 1) if most_ranks % n == 0 or n & (n - 1) == 0})
    for pipeline in factors:
        for tensor in (n for n in factors if pipeline * n <= most_ranks):
            for data in (n for n in factors if pipeline * tensor * n <= most_ranks):
                for expert in sorted({1, data * tensor}):
                    split = Split(tensor=tensor, pipeline=pipeline, expert=expert, data=data)
                    if refusal(model, split, redundant_experts if split.spread else 0) is None:
                        yield split


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSpan:
    """Placement of a group on nodes: its size, and how many of its members are on one node."""

    size: int
    near: int

    @property
    def nodes(self) -> int:
        return -(-self.size // self.near)


def span(split: Split, group: str, gpus_per_node: int) -> GroupSpan:
    """The placement of the "tensor" or "stage" group that uses the most nodes."""
    size = split.group_size(group)
    if gpus_per_node % size == 0:
        return GroupSpan(size=size, near=size)
    if size % gpus_per_node == 0:
        return GroupSpan(size=size, near=gpus_per_node)
    return GroupSpan(size=size, near=max(1, _least_share(size, gpus_per_node, split.world_size)))


def _least_share(size: int, gpus_per_node: int, world_size: int) -> int:
    """The smallest number of members of one group on a node, over all groups and nodes."""
    least = size
    for first in range(0, world_size, size):
        nodes = [rank // gpus_per_node for rank in range(first, first + size)]
        least = min(least, *(nodes.count(node) for node in set(nodes)))
    return least
