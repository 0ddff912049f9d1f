"""A rank's share of every layer, and the groups that share the layers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from outrider.workers.parallel.collectives.collectives import Collectives, SingleRank
from outrider.workers.parallel.collectives.peer_memory import PeerAreas, PeerMemory
from outrider.workers.parallel.mesh import Mesh
from outrider.workers.parallel.shard import Shard
from outrider.workers.parallel.slices import Cut


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """The default is a rank that has all of every layer."""

    shard: Shard = field(default_factory=Shard)
    tensor: Collectives = field(default_factory=SingleRank)
    stage: Collectives = field(default_factory=SingleRank)
    deep_ep: Any | None = None  # DeepEP's buffer, if expert dispatch uses DeepEP
    peers: PeerMemory | None = None  # the tensor group's, if its GPUs can access each other's memory
    dispatch_areas: PeerAreas | None = None  # the stage's (peer_dispatch.py), if its GPUs can do so

    @classmethod
    def of(cls, shard: Shard, groups: Mapping[tuple[int, ...], Collectives], mesh: Mesh, rank: int) -> "Sharing":
        """`groups` are this rank's, by their members."""
        return cls(
            shard=shard,
            tensor=groups.get(mesh.tensor_group(rank)) or SingleRank(),
            stage=groups.get(mesh.stage_group(rank)) or SingleRank(),
        )

    @property
    def groups(self) -> tuple[Collectives, ...]:
        """The distinct groups: one if tensor group and stage are the same."""
        return tuple({id(group): group for group in (self.tensor, self.stage)}.values())

    @property
    def carriers(self) -> str:
        """The transports of this rank's groups, e.g. "shared memory"; empty without other ranks."""
        return ", ".join(dict.fromkeys(group.name for group in self.groups if group.size > 1))

    def sum(self, purpose: str) -> "Sum":
        """Adds this rank's summand to the other ranks' summands."""
        return Sum(self.tensor, purpose)

    def columns(self, size: int, purpose: str, unit: int | None = None) -> "Columns":
        """Joins this rank's slice of `size` outputs with the other ranks' slices."""
        shard = self.shard
        return Columns(self.tensor, Cut(size, shard.tensors, shard.unit if unit is None else unit), purpose, self.peers)


class Join(Protocol):
    """Turns the results of a tensor group's ranks into complete rows."""

    def __call__(self, part: Tensor) -> Tensor:
        """`part` [rows, ...] -> [rows, size], the same on every rank."""
        ...


@dataclass(frozen=True, slots=True)
class Sum:
    """Adds up the ranks' partial results, each from its own inputs. Implements Join; for numerics "fast"."""

    group: Collectives
    purpose: str

    def __call__(self, part: Tensor) -> Tensor:
        return self.group.add(part, self.purpose) if len(part) else part


@dataclass(frozen=True, slots=True)
class Columns:
    """Joins column slices, one per rank of a group, into complete rows. Implements Join."""

    group: Collectives
    cut: Cut
    purpose: str
    peers: PeerMemory | None = None

    @property
    def capturable(self) -> bool:
        """Whether a CUDA graph can capture calls with few rows."""
        return self.group.size == 1 or (self.peers is not None and self._even)

    def __call__(self, part: Tensor) -> Tensor:
        """`part` [rows, own width] -> [rows, size], the same on every rank."""
        if self.group.size == 1:
            return part
        if not len(part):
            return part.new_empty(0, self.cut.size)
        if self.peers is not None and self._even and self.peers.holds(part):
            return self.peers.gather(part)
        return self.joined(self.group.gather(self._padded(part), self.purpose))

    def each(self, part: Tensor) -> Tensor:
        """Gathers every rank's `part` [rows, w], which is not a slice of columns: [ranks, rows, w]."""
        if self.peers is not None and self.peers.holds(part):
            return self.peers.gather(part).view(len(part), self.group.size, -1).transpose(0, 1)
        return self.group.gather(part, self.purpose)

    @property
    def _even(self) -> bool:
        return len(set(self.cut.widths)) == 1

    def on(self, root: int, part: Tensor) -> Tensor | None:
        """Like a call, but only rank `root` gets the rows; None on the others."""
        if self.group.size == 1:
            return part
        parts = self.group.gather(self._padded(part), self.purpose, root)
        return self.joined(parts) if self.group.rank == root else None

    def joined(self, parts: Tensor) -> Tensor:
        """`parts` [ranks, rows, widest] without padding, side by side."""
        return joined_columns(parts, self.cut)

    def _padded(self, part: Tensor) -> Tensor:
        return functional.pad(part, (0, self.cut.widest - part.shape[-1]))


def joined_columns(parts: Tensor, cut: Cut) -> Tensor:
    """[ranks, rows, widest] -> [rows, size]."""
    return torch.cat([part[:, :width] for part, width in zip(parts, cut.widths, strict=True)], dim=1)
