"""The inputs of the MTP modules in one call in PyTorch: accepted pairs, and the drafts after them.

Pass j runs module j over the pairs that it can process and the drafts after them. After the last module's pass, that
module continues alone, over the newest draft of each sequence. A row's input state is the state that the previous pass
computed for the row before it.
"""

import numpy as np
import torch
from torch import Tensor

from outrider.workers.drafting.pairs import Pairs, rows_of
from outrider.workers.model.rows import Chain, Rows
from outrider.workers.types.rounds.round import IntArray

_NO_SEQUENCE = -1


class Feed:
    """Row numbers: first the N pairs, then the states kept from earlier calls, then drafts in the order made."""

    def __init__(self, pairs: Pairs, chain: Chain | None, modules: int, lasts: IntArray) -> None:
        """`chain`: None with one module. `lasts`: the pairs after which drafts are made, ascending."""
        self._pairs, self._chain, self._modules = pairs, chain, modules
        self._count = len(pairs)
        self._pass = 0
        kept = np.zeros(0 if chain is None else len(chain.kept), dtype=np.int64)
        self._entries = np.concatenate([np.repeat(np.arange(len(pairs.lengths)), pairs.lengths), kept])
        self._token_ids = np.concatenate([pairs.token_ids, kept])
        self._positions = np.concatenate([pairs.positions, kept])
        ones = np.ones(self._count, dtype=np.int64)
        self._before = np.concatenate([ones if chain is None else chain.before, kept])
        self._reach = np.concatenate([ones if chain is None else chain.reach, kept])
        self._drafted_for = np.full(len(self._entries), _NO_SEQUENCE)
        # Pairs whose states the first pass must compute; None: all. With one module only `lasts` are needed.
        self.wanted = lasts if chain is None else None
        self._places = np.arange(len(self._entries))  # each row's index in the last pass's states
        if self.wanted is not None:
            self._places[lasts] = np.arange(len(lasts))

    def positions(self, rows: IntArray) -> IntArray:
        """The positions of these rows' pairs."""
        return self._positions[rows]

    def states(self, rows: IntArray, state: Tensor) -> Tensor:
        """Selects the hidden states of `rows` from the last forward pass's `state`."""
        return state[torch.from_numpy(self._places[rows])]

    def leave(self, state: Tensor) -> None:
        """Stores those rows of the last pass's `state` that later calls need."""
        if self._chain is None or self._pass >= self._modules - 1:
            return
        taken = np.flatnonzero(self._reach[self._chain.lasts] > self._pass)
        self._chain.leaves[torch.from_numpy(taken), self._pass] = self.states(self._chain.lasts[taken], state)

    def add(self, sequences: IntArray, behind: IntArray, token_ids: IntArray) -> IntArray:
        """Adds drafts of `sequences` that were drawn from the states of rows `behind`. Returns their row numbers."""
        rows = len(self._entries) + np.arange(len(behind))
        self._entries = np.append(self._entries, self._entries[behind])
        self._token_ids = np.append(self._token_ids, token_ids)
        self._positions = np.append(self._positions, self._positions[behind] + 1)
        self._before = np.append(self._before, behind)
        self._reach = np.append(self._reach, np.minimum(self._reach[behind] + 1, self._modules))
        self._drafted_for = np.append(self._drafted_for, sequences)
        return rows

    def next(self, state: Tensor, sequences: IntArray, newest: IntArray) -> tuple[Rows, Tensor, int]:
        """The next pass's rows, their input states [rows, hidden], and the number of its module.

        `state`: the last pass's states. `newest`: the newest draft of each of `sequences`, which are to draft further.
        """
        self._pass += 1
        chosen = newest if self._pass >= self._modules else self._taken_in(sequences)
        kept = slice(self._count, self._count + (0 if self._chain is None else len(self._chain.kept)))
        if self._chain is not None and self._pass < self._modules:
            self._places[kept] = len(state) + np.arange(len(self._chain.kept))
            state = torch.cat([state, self._chain.kept[:, self._pass - 1]])
        hidden = self.states(self._before[chosen], state)
        self._places = np.zeros(len(self._entries), dtype=np.int64)
        self._places[chosen] = np.arange(len(chosen))
        return self._rows(chosen), hidden, min(self._pass, self._modules - 1)

    def _taken_in(self, sequences: IntArray) -> IntArray:
        """The rows that this pass's module processes: accepted pairs, and drafts of `sequences`."""
        wanted = np.isin(self._drafted_for, np.append(sequences, _NO_SEQUENCE))
        return np.flatnonzero((self._reach > self._pass) & wanted)

    def _rows(self, chosen: IntArray) -> Rows:
        """Rows for the module: the accepted pairs of an entry form one sequence, each draft its own."""
        entries = self._entries[chosen]
        begins = np.ones(len(chosen), dtype=bool)
        begins[1:] = (np.diff(entries) != 0) | (chosen[1:] >= self._count)
        firsts = np.flatnonzero(begins)
        lengths = np.diff(np.append(firsts, len(chosen)))
        return rows_of(self._pairs, entries[firsts], lengths, self._token_ids[chosen], self._positions[chosen])
