"""Each rank's coordinates: pipeline x data x tensor, the tensor group innermost. Pure and torch-free.

Rank (stage, data, tensor) is number (stage * data_size + data) * tensor_size + tensor. So the ranks of a stage are
consecutive, and so are those of a tensor group, which exchange the most data and should share a node.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from outrider.workers.config import ParallelConfig

Route = tuple[int, int]  # one direction between two ranks: sender, receiver


@dataclass(frozen=True, slots=True)
class Place:
    """A rank's coordinates."""

    stage: int
    data: int
    tensor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """The ranks of one replica."""

    pipeline: int = 1
    data: int = 1
    tensor: int = 1

    @classmethod
    def of(cls, parallel: ParallelConfig) -> "Mesh":
        return cls(
            pipeline=parallel.pipeline_parallel_size,
            data=parallel.data_parallel_size,
            tensor=parallel.tensor_parallel_size,
        )

    @property
    def stage_size(self) -> int:
        return self.data * self.tensor

    @property
    def size(self) -> int:
        return self.pipeline * self.stage_size

    def place(self, rank: int) -> Place:
        stage, within = divmod(rank, self.stage_size)
        return Place(stage, *divmod(within, self.tensor))

    def tensor_group(self, rank: int) -> tuple[int, ...]:
        """The ranks that split the attention heads of the same sequences."""
        first = rank - rank % self.tensor
        return tuple(range(first, first + self.tensor))

    def stage_group(self, rank: int) -> tuple[int, ...]:
        """The ranks that hold the same layers. With expert parallelism, experts are spread over them."""
        first = rank - rank % self.stage_size
        return tuple(range(first, first + self.stage_size))

    def groups(self) -> dict[str, tuple[int, ...]]:
        """Every group of two or more ranks that has collectives, by name. Groups with the same ranks are one group."""
        named: dict[str, tuple[int, ...]] = {}
        for stage in range(self.pipeline):
            first = stage * self.stage_size
            members = [self.stage_group(first), *(self.tensor_group(first + d * self.tensor) for d in range(self.data))]
            for group in members:
                if len(group) > 1:
                    named[group_name(group)] = group
        return named

    def routes(self) -> tuple[Route, ...]:
        """Every stage link.

        The ranks with the same data and tensor coordinates form a ring over the stages; verdicts go from the last
        stage to the first. The leader sends commands to the other ranks of the first stage, and the sampler sends
        verdicts to those of the last.
        """
        step = self.stage_size
        ring = [(rank, (rank + step) % self.size) for rank in range(self.size)] if self.pipeline > 1 else []
        heads = {0, self.sampler}
        return (*ring, *((head, other) for head in sorted(heads) for other in self.stage_group(head) if other != head))

    @property
    def sampler(self) -> int:
        """The rank that samples: the first of the last stage."""
        return self.size - self.stage_size

    def describe(self, layer_splits: Sequence[tuple[int, int]], rank: int, pid: int | None = None) -> str:
        """A rank's name in errors, e.g. "rank 3 (stage 1, layers 7..12, tensor 1, pid 123)"."""
        place = self.place(rank)
        first, end = layer_splits[place.stage]
        parts = [f"stage {place.stage}", f"layers {first}..{end - 1}"]
        parts += [f"data {place.data}"] * (self.data > 1) + [f"tensor {place.tensor}"] * (self.tensor > 1)
        parts += [] if pid is None else [f"pid {pid}"]
        return f"rank {rank} ({', '.join(parts)})"


def group_name(ranks: Sequence[int]) -> str:
    """E.g. "ranks 4..7"."""
    return f"ranks {ranks[0]}..{ranks[-1]}"
