"""Keeps states between calls for MTP modules after the first: the previous module's state at a sequence's last slot.

A module's pair at slot j uses the previous module's state at slot j-1. If neither this call nor the one before computed
it, as at the start of a sequence, the module starts one slot later than the previous module.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from torch import Tensor

from outrider.workers.drafting.pairs import Pairs
from outrider.workers.model.rows import Chain
from outrider.workers.types.rounds.round import IntArray, ints


class _Kept(NamedTuple):
    """A sequence's states at the slot of its last pair."""

    position: int  # of the pair
    first_slot: int  # from which the drafter follows the sequence
    reach: int  # number of modules that processed the pair
    states: Tensor  # [modules - 1, hidden]


class KeptStates:
    """The kept states of all live sequences, for a model with `modules` MTP modules."""

    def __init__(self, modules: int) -> None:
        self._modules = modules
        self._kept: dict[int, _Kept] = {}

    def link(self, pairs: Pairs) -> Chain | None:
        """Links `pairs` to one another and to states of earlier calls; None with one module.

        The caller stores its own states in the Chain, for later calls.
        """
        if self._modules == 1:
            return None
        owners = np.repeat(np.arange(len(pairs.lengths)), pairs.lengths)
        links = _Links(self._modules, pairs, pairs.sequence_ids[owners], pairs.first_slots[owners])
        for first, end in pairwise([*_runs(links), len(pairs)]):
            links.add_run(first, end, self._kept.get(int(links.sequence_ids[first])))
        hidden = pairs.hidden
        kept = hidden.new_empty(len(links.kept), self._modules - 1, hidden.shape[1])
        for place, states in zip(kept, links.kept, strict=True):
            place.copy_(states)
        lasts = list(links.lasts.values())
        leaves = hidden.new_empty(len(lasts), self._modules - 1, hidden.shape[1])
        for (sequence_id, row), states in zip(links.lasts.items(), leaves, strict=True):
            self._kept[sequence_id] = links.left(row, states)
        return Chain(before=links.before, reach=links.reach, kept=kept, lasts=ints(lasts), leaves=leaves)

    def forget(self, sequence_ids: IntArray) -> None:
        for sequence_id in sequence_ids.tolist():
            self._kept.pop(sequence_id, None)


def _runs(links: "_Links") -> list[int]:
    """The first index of each run of pairs in consecutive slots."""
    ids, positions, firsts = links.sequence_ids, links.positions, links.first_slots
    if not len(ids):
        return []
    goes_on = (np.diff(ids) == 0) & (np.diff(positions) == 1) & (np.diff(firsts) == 0)
    return [0, *(np.flatnonzero(~goes_on) + 1).tolist()]


class _Links:
    """A Chain under construction, run by run."""

    def __init__(self, modules: int, pairs: Pairs, sequence_ids: IntArray, first_slots: IntArray) -> None:
        self._modules, self.positions = modules, pairs.positions
        self.sequence_ids, self.first_slots = sequence_ids, first_slots  # of every pair
        self.before = np.arange(len(pairs)) - 1
        self.reach = np.ones(len(pairs), dtype=np.int64)
        self.kept: list[Tensor] = []
        self.lasts: dict[int, int] = {}  # each sequence's last pair so far

    def add_run(self, first: int, end: int, kept: _Kept | None) -> None:
        """Links a run to the sequence's previous run in this call, else to its `kept` states, else to nothing."""
        sequence_id, place = int(self.sequence_ids[first]), (int(self.positions[first]), int(self.first_slots[first]))
        last, reach = self.lasts.get(sequence_id), 0
        if last is not None and (self.positions[last] + 1, self.first_slots[last]) == place:
            self.before[first], reach = last, int(self.reach[last])
        elif kept is not None and (kept.position + 1, kept.first_slot) == place:
            self.before[first], reach = len(self.before) + len(self.kept), kept.reach
            self.kept.append(kept.states)
        self.reach[first:end] = np.minimum(reach + 1 + np.arange(end - first), self._modules)
        self.lasts[sequence_id] = end - 1

    def left(self, row: int, states: Tensor) -> _Kept:
        reach = min(int(self.reach[row]), self._modules - 1)
        return _Kept(int(self.positions[row]), int(self.first_slots[row]), reach, states)
