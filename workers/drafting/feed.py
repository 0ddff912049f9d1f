"""What the MTP modules are fed in one call on torch's path: pairs that are certain, and the drafts behind them.

Pass j is module j's, over the pairs that it can take in and what was drafted behind them. Once all modules had theirs,
the last goes on alone, over the newest draft of each sequence. A row is made of the last pass's state of the row before
it.
"""

import numpy as np
import torch
from torch import Tensor

from outrider.workers.drafting.pairs import Pairs, rows_of
from outrider.workers.model.rows import Chain, Rows
from outrider.workers.types.round import IntArray

_NOBODY = -1


class Feed:
    """Rows are numbered: first the N pairs, then the states kept of earlier calls, then the drafts as they come."""

    def __init__(self, pairs: Pairs, chain: Chain | None, modules: int, lasts: IntArray) -> None:
        """`chain` is there where there are several modules. `lasts`: the pairs that are drafted after, ascending."""
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
        self._drafted_for = np.full(len(self._entries), _NOBODY)
        # Pairs whose states the first pass is to make; None: all. With one module only these are needed.
        self.wanted = lasts if chain is None else None
        self._places = np.arange(len(self._entries))  # of the rows' states among the last pass's
        if self.wanted is not None:
            self._places[lasts] = np.arange(len(lasts))

    def positions(self, rows: IntArray) -> IntArray:
        """Of their pairs."""
        return self._positions[rows]

    def states(self, rows: IntArray, state: Tensor) -> Tensor:
        """Those of `rows` in `state`, which the last pass made."""
        return state[torch.from_numpy(self._places[rows])]

    def leave(self, state: Tensor) -> None:
        """Keeps what later calls need of `state`, which the last pass made."""
        if self._chain is None or self._pass >= self._modules - 1:
            return
        taken = np.flatnonzero(self._reach[self._chain.lasts] > self._pass)
        self._chain.leaves[torch.from_numpy(taken), self._pass] = self.states(self._chain.lasts[taken], state)

    def add(self, sequences: IntArray, behind: IntArray, token_ids: IntArray) -> IntArray:
        """What was drafted for `sequences` from the states of the rows `behind`: its rows."""
        rows = len(self._entries) + np.arange(len(behind))
        self._entries = np.append(self._entries, self._entries[behind])
        self._token_ids = np.append(self._token_ids, token_ids)
        self._positions = np.append(self._positions, self._positions[behind] + 1)
        self._before = np.append(self._before, behind)
        self._reach = np.append(self._reach, np.minimum(self._reach[behind] + 1, self._modules))
        self._drafted_for = np.append(self._drafted_for, sequences)
        return rows

    def next(self, state: Tensor, sequences: IntArray, newest: IntArray) -> tuple[Rows, Tensor, int]:
        """The next pass's rows, the states before them [rows, hidden], and its module.

        `state` is what the last pass made, `newest` are the last drafts of those `sequences` that go deeper.
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
        """What the pass's module takes in: certain pairs, and drafts of the sequences that go deeper."""
        wanted = np.isin(self._drafted_for, np.append(sequences, _NOBODY))
        return np.flatnonzero((self._reach > self._pass) & wanted)

    def _rows(self, chosen: IntArray) -> Rows:
        """Certain pairs of one entry go together, each draft by itself."""
        entries = self._entries[chosen]
        begins = np.ones(len(chosen), dtype=bool)
        begins[1:] = (np.diff(entries) != 0) | (chosen[1:] >= self._count)
        firsts = np.flatnonzero(begins)
        lengths = np.diff(np.append(firsts, len(chosen)))
        return rows_of(self._pairs, entries[firsts], lengths, self._token_ids[chosen], self._positions[chosen])
