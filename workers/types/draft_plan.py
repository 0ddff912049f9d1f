"""What the depth policy wants of each sequence, as the scheduler reads it."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from outrider.workers.types.sequence import Sequence
from outrider.workers.types.stop_rule import NEVER_STOP, StopRule


class DraftPlan(NamedTuple):
    """Of one sequence. The scheduler may allow fewer drafts."""

    depth: int = 0  # most drafts that a model makes after each of its rounds
    follows: bool = False  # the drafter's cache takes its tokens in: without, no model can draft for it
    stop: StopRule = NEVER_STOP  # when drafting ends before that depth
    looks_up: bool = False  # its own text may be searched for drafts


NO_DRAFTS = DraftPlan()


class Planner(Protocol):
    """Makes the plans. DepthPolicy is one."""

    @property
    def plans(self) -> Mapping[int, DraftPlan]:
        """By sequence, live; without one it has no drafts."""
        ...

    def admit(self, sequence: Sequence, together: int) -> None:
        """The sequence is about to have its first round; `together` will share its lane's rounds."""
        ...

    def forget(self, sequence_id: int) -> None:
        """The sequence ended."""
        ...


class Undrafted:
    """Implements Planner: nothing is ever drafted."""

    plans: Mapping[int, DraftPlan] = {}

    def admit(self, sequence: Sequence, together: int) -> None: ...

    def forget(self, sequence_id: int) -> None: ...
