"""What a drafter asks of the model that it drafts with, whichever path computes it."""

from typing import NamedTuple, Protocol

from outrider.workers.drafting.pairs import Pairs
from outrider.workers.types.drafts import Drafts
from outrider.workers.types.round import FloatArray, IntArray


class DraftRequest(NamedTuple):
    """The drafts that are to be made after some pairs."""

    entries: IntArray  # [n] of the pairs: whose last pair each draft follows
    depths: IntArray  # [n] how many at most
    steps: int | None = None  # the largest depth where other data groups draft beside this one: all go as many
    stop_rules: FloatArray | None = None  # [n, 7] when drafting ends before: types/stop_rule.py


class DraftModel(Protocol):
    """The MTP modules or a separate model, with its cache and a head."""

    def draft(self, pairs: Pairs, wanted: DraftRequest) -> list[Drafts]:
        """Feeds all `pairs`; then drafts, for each entry that is wanted.

        Of ranks with the same pairs only the first is sure of its drafts' confidence.
        """
        ...

    def forget(self, sequence_ids: IntArray) -> None:
        """Drops what is kept of sequences beside the cache."""
        ...


class ModuleDraftModel(DraftModel, Protocol):
    """The MTP modules, which others may replace."""

    @property
    def module(self) -> object: ...

    def use(self, module: object) -> None:
        """Drafts with others from now on; they have these ones' cache. For the engine's thread, between rounds."""
        ...
