"""What prompt lookup carries of the live sequences of late: rounds in which models are not needed. Pure."""

from collections.abc import Iterable
from typing import NamedTuple

_MEMORY = 6.0  # rounds: what is copied has ends
_FLEET_WEIGHT, _FLEET_MEMORY = 4.0, 200.0  # rounds: a new sequence's usual ones; all sequences'
_CARRIED, _MUCH = 0.5, 2.0  # of its rounds have looked-up drafts; so many should stand in each: lookup carries it
_FAINT = 0.01  # of its rounds: as good as none
_COMMON = 0.5  # of the drafts of all rounds: enough for all to be looked up for in every round


class LookedUp(NamedTuple):
    """In a round."""

    share: float = 0.0  # how often drafts are looked up
    rows: float = 0.0  # drafts
    tokens: float = 0.0  # of these that should stand

    @property
    def carries(self) -> bool:
        """Of one sequence: whether models have little to add."""
        return self.share >= _CARRIED and self.tokens >= _MUCH


NOTHING = LookedUp()


class LookedUps:
    """Of each live sequence that may be looked up for; a new one is as all are."""

    def __init__(self) -> None:
        self._fleet = NOTHING
        self._silent = 0  # rounds without, that are not in the fleet's mean yet
        self._own: dict[int, tuple[float, LookedUp]] = {}  # rounds; their mean
        self._alone: set[int] = set()  # sequences that no model drafts for: what they copy says nothing of others

    def meet(self, sequence_id: int, *, alone: bool = False) -> None:
        """A sequence came that may be looked up for. `alone`: no model drafts for it, whatever that would bring."""
        self._hear()
        self._own[sequence_id] = _FLEET_WEIGHT, self._fleet
        if alone:
            self._alone.add(sequence_id)

    def add(self, sequence_id: int, rows: int, tokens: float) -> bool:
        """A round of the sequence has so many looked-up drafts, of which `tokens` should stand.

        Whether that begins or ends that lookup carries it.
        """
        if sequence_id not in self._own:
            return False
        weight, own = self._own[sequence_id]
        alone = sequence_id in self._alone
        if not rows and own.share < _FAINT:
            self._silent += not alone
            return False
        self._hear()
        new, weight = LookedUp(float(rows > 0), rows, tokens), min(weight + 1.0, _MEMORY)
        now = _towards(own, new, 1.0 / weight)
        self._own[sequence_id] = weight, now
        if not alone:
            self._fleet = _towards(self._fleet, new, 1.0 / _FLEET_MEMORY)
        return own.carries != now.carries

    def _hear(self) -> None:
        """Takes the silent rounds into the fleet's mean."""
        if self._silent:
            self._fleet = _towards(self._fleet, NOTHING, 1.0 - (1.0 - 1.0 / _FLEET_MEMORY) ** self._silent)
            self._silent = 0

    def of(self, sequence_ids: Iterable[int]) -> LookedUp:
        """Summed over these."""
        share = rows = tokens = 0.0
        for each in sequence_ids:
            own = self._of(each)
            share, rows, tokens = share + own.share, rows + own.rows, tokens + own.tokens
        return LookedUp(share, rows, tokens)

    @property
    def common(self) -> bool:
        """Whether looked-up drafts bring much, of all sequences."""
        self._hear()
        return self._fleet.tokens >= _COMMON

    def carries(self, sequence_id: int) -> bool:
        """Whether what is looked up for the sequence leaves models little to add."""
        return self._of(sequence_id).carries

    def _of(self, sequence_id: int) -> LookedUp:
        return self._own[sequence_id][1] if sequence_id in self._own else NOTHING

    def forget(self, sequence_id: int) -> None:
        self._own.pop(sequence_id, None)
        self._alone.discard(sequence_id)


def _towards(old: LookedUp, new: LookedUp, by: float) -> LookedUp:
    return LookedUp(*[before + by * (after - before) for before, after in zip(old, new, strict=True)])
