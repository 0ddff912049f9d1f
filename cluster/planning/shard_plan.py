"""Which rank holds which layers. Pure: model shape x sizes -> ShardPlan. Independent of nodes, Ray and memory sizes."""

from dataclasses import dataclass

from outrider.workers.config import ParallelConfig
from outrider.workers.parallel.mesh import Mesh
from outrider.workers.parallel.shard import check_split
from outrider.workers.parallel.stages import expected_draft_steps, split_layers
from outrider.workers.types.model.model_config import ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """One replica's ranks."""

    layer_splits: tuple[tuple[int, int], ...]  # per stage: first layer, one past the last
    data_parallel_size: int = 1
    tensor_parallel_size: int = 1

    @property
    def mesh(self) -> Mesh:
        return Mesh(pipeline=len(self.layer_splits), data=self.data_parallel_size, tensor=self.tensor_parallel_size)

    @property
    def world_size(self) -> int:
        return self.mesh.size

    def stage(self, rank: int) -> int:
        return self.mesh.place(rank).stage

    def describe(self, rank: int, pid: int | None = None) -> str:
        """A rank's name in errors."""
        return self.mesh.describe(self.layer_splits, rank, pid)


def make_plan(
    model: ModelConfig, parallel: ParallelConfig, speculation: str | int, redundant_experts: int = 0
) -> ShardPlan:
    """The balanced plan. Raises ValueError, which names the values, if the model cannot be split with these sizes."""
    check_split(model, parallel, redundant_experts)
    steps = expected_draft_steps(speculation, model)
    return ShardPlan(
        layer_splits=split_layers(model, parallel.pipeline_parallel_size, steps),
        data_parallel_size=parallel.data_parallel_size,
        tensor_parallel_size=parallel.tensor_parallel_size,
    )
