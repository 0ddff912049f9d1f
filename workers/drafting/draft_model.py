"""The interface between a drafter and its model, implemented for torch, compiled kernels and GPUs."""

from typing import NamedTuple, Protocol

from outrider.workers.drafting.pairs import Pairs
from outrider.workers.types.rounds.drafts import Drafts
from outrider.workers.types.rounds.round import FloatArray, IntArray


class AllGroups(NamedTuple):
    """Sizes that all data groups know, so that all run the same passes, each with at most so many rows."""

    steps: int  # drafts of the deepest sequence
    pairs: int  # rows of the first pass
    drafts: int  # rows of each later pass


class DraftRequest(NamedTuple):
    """The drafts to make after some pairs."""

    entries: IntArray  # [n] entries of the pairs; drafts follow an entry's last pair
    depths: IntArray  # [n] most drafts
    groups: AllGroups | None = None  # with several data groups
    stop_rules: FloatArray | None = None  # [n, 7] early stopping: types/rounds/stop_rule.py


class DraftModel(Protocol):
    """The MTP modules or a separate model, with its cache and a head."""

    def draft(self, pairs: Pairs, wanted: DraftRequest) -> list[Drafts]:
        """Feeds all `pairs`, then makes the wanted drafts.

        Among ranks with the same pairs, only the first returns valid confidences.
        """
        ...

    def forget(self, sequence_ids: IntArray) -> None:
        """Drops the state of sequences that is not in the cache."""
        ...


class ModuleDraftModel(DraftModel, Protocol):
    """The MTP modules, which can be replaced."""

    @property
    def module(self) -> object: ...

    def use(self, module: object) -> None:
        """Replaces the modules; the cache is kept. Only for the engine's thread, between rounds."""
        ...
