"""Which rank holds what. Pure: model shape x sizes -> ShardPlan; knows nothing of nodes, Ray or bytes on a device."""

from dataclasses import dataclass

from outrider.workers.config import ParallelConfig
from outrider.workers.model.config import ModelConfig
from outrider.workers.parallel.stages import describe_rank, expected_draft_steps, split_layers


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """One replica's ranks. With one rank a stage, rank and stage are the same number."""

    layer_splits: tuple[tuple[int, int], ...]  # by stage: first layer, one past the last

    @property
    def world_size(self) -> int:
        return len(self.layer_splits)

    def describe(self, rank: int, pid: int | None = None) -> str:
        """A rank's name in errors."""
        return describe_rank(self.layer_splits, rank, pid)


def make_plan(model: ModelConfig, parallel: ParallelConfig, speculation: str | int) -> ShardPlan:
    """The balanced plan. ValueError if the model has fewer layers than the plan has stages."""
    steps = expected_draft_steps(speculation, model)
    return ShardPlan(layer_splits=split_layers(model, parallel.pipeline_parallel_size, steps))
