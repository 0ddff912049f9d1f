"""Draft plans: what the depth policy decides for each sequence, and the scheduler carries out."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from outrider.workers.types.rounds.sequence import Sequence
from outrider.workers.types.rounds.stop_rule import NEVER_STOP, StopRule


class DraftPlan(NamedTuple):
    """The plan of one sequence. The scheduler may allow fewer drafts."""

    depth: int = 0  # most drafts that a model makes after each of its rounds
    follows: bool = False  # the drafter's cache follows the sequence; required for drafts by a model
    stop: StopRule = NEVER_STOP  # early stopping
    looks_up: bool = False  # prompt lookup may be used


NO_DRAFTS = DraftPlan()


class Planner(Protocol):
    """Makes the plans. Implemented by DepthPolicy."""

    @property
    def plans(self) -> Mapping[int, DraftPlan]:
        """The present plans by sequence id; a sequence without a plan has no drafts."""
        ...

    def admit(self, sequence: Sequence, together: int) -> None:
        """Called before the sequence's first round. `together`: number of sequences in its lane's rounds."""
        ...

    def forget(self, sequence_id: int) -> None:
        """Called when the sequence has ended."""
        ...


class NoDrafting:
    """Implements Planner: no sequence has drafts."""

    plans: Mapping[int, DraftPlan] = {}

    def admit(self, sequence: Sequence, together: int) -> None: ...

    def forget(self, sequence_id: int) -> None: ...
