"""At which exchanges a stage's ranks switch lanes: those that proceed while the rank computes. Pure, torch-free.

All ranks of a stage must switch at the same exchanges. Otherwise they would wait for one another in different lanes
for ever. So the choice depends on the properties of all ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AsyncExchanges:
    """Which of a rank's exchanges proceed while it computes: those of its tensor group, of its stage."""

    machine: str
    tensor: bool
    stage: bool


@dataclass(frozen=True, slots=True)
class Overlap:
    """The exchanges at which a stage's ranks switch lanes."""

    tensor: bool = False  # exchanges of tensor groups
    stage: bool = False  # exchanges of the whole stage

    @property
    def possible(self) -> bool:
        return self.tensor or self.stage


def overlap_of(ranks: Sequence[AsyncExchanges], tensors: int, *, enabled: bool | None, gpu: bool) -> Overlap:
    """`ranks` are a stage's, `tensors` of them a tensor group. `enabled` None: where overlap saves time.

    On CPUs it saves time if a group's ranks are on several machines. On one machine, exchanges use the processor
    themselves.
    """
    if enabled is False:
        return Overlap()
    groups = [ranks[first : first + tensors] for first in range(0, len(ranks), tensors)]
    wanted = gpu or enabled is True
    return Overlap(
        tensor=all(rank.tensor for rank in ranks) and (wanted or any(map(_apart, groups))),
        stage=all(rank.stage for rank in ranks) and (wanted or _apart(ranks)),
    )


def _apart(ranks: Sequence[AsyncExchanges]) -> bool:
    return len({rank.machine for rank in ranks}) > 1
