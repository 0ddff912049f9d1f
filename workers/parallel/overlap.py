"""Where the lanes of a stage's ranks hand over to one another: at exchanges that go on by themselves. Pure, torch-free.

All ranks of a stage must hand over at the same exchanges, or they would wait for one another in different lanes for
ever. So it follows from what each says of itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Carried:
    """What a rank says of its exchanges: whether those of a group go on by themselves while the rank computes."""

    machine: str
    tensor: bool
    stage: bool


@dataclass(frozen=True, slots=True)
class Overlap:
    """At which exchanges the lanes of a stage's ranks hand over."""

    tensor: bool = False  # those of tensor groups
    stage: bool = False  # those of the whole stage

    @property
    def possible(self) -> bool:
        return self.tensor or self.stage


def overlap_of(ranks: Sequence[Carried], tensors: int, *, enabled: bool | None, gpu: bool) -> Overlap:
    """`ranks` are a stage's, `tensors` of them a tensor group. `enabled` None: where there is something to be won.

    On CPUs that is where a group's ranks stand on several machines: on one they exchange by computing.
    """
    if enabled is False:
        return Overlap()
    groups = [ranks[first : first + tensors] for first in range(0, len(ranks), tensors)]
    wanted = gpu or enabled is True
    return Overlap(
        tensor=all(rank.tensor for rank in ranks) and (wanted or any(map(_apart, groups))),
        stage=all(rank.stage for rank in ranks) and (wanted or _apart(ranks)),
    )


def _apart(ranks: Sequence[Carried]) -> bool:
    return len({rank.machine for rank in ranks}) > 1
