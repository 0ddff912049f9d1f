"""Pairs (h_i, t_{i+1}): the inputs of an MTP module for accepted tokens, and the backlog of pairs not fed yet.

Only the states are torch tensors; all else is integer arrays.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outrider.workers.model.rows import Rows
from outrider.workers.types.rounds.round import IntArray, Round, Verdict, as_ints, ints, offsets


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """N pairs of S sequences, sequence by sequence. The pair of position i writes slot i+1 of the drafter's cache."""

    sequence_ids: IntArray  # [S]
    lengths: IntArray  # [S]
    token_ids: IntArray  # [N] t_{i+1}
    positions: IntArray  # [N] i
    hidden: Tensor  # [any, hidden] holds h_i, or the module's own state in a later step of a draft
    write_from: IntArray  # [S] earlier slots are shared with other sequences, and are not written
    first_slots: IntArray  # [S] the drafter followed from this slot on, and reads no earlier ones; 1: from the start
    tables: tuple[IntArray, ...]  # block table of each sequence
    hidden_rows: IntArray | None = None  # [N] each pair's row of `hidden`, ascending; None: row n is pair n's

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def last_rows(self) -> IntArray:
        return ints([end - 1 for end in accumulate(self.lengths.tolist())])

    @property
    def states(self) -> Tensor:
        """h_i of every pair, [N, hidden]. On a GPU this copies `hidden_rows` to the device."""
        return self.hidden if self.hidden_rows is None else self.hidden[torch.from_numpy(self.hidden_rows)]


def followed(round: Round, verdict: Verdict) -> list[int]:
    """Indexes of the round's sequences that the drafter follows and that have accepted rows."""
    follows = round.follows.tolist()
    if 1 not in follows:
        return []
    columns = zip(follows, verdict.accepted_rows.tolist(), strict=True)
    return [s for s, (follow, accepted) in enumerate(columns) if follow and accepted]


def accepted_pairs(round: Round, verdict: Verdict, hidden: Tensor, kept: list[int]) -> Pairs:
    """The accepted pairs of the round's sequences `kept`.

    `hidden`: the states of all accepted rows, [sum(accepted_rows), hidden], or of all rows of the round.
    """
    lengths, starts = verdict.accepted_rows.tolist(), round.starts.tolist()
    token_ids, positions = array("q"), array("q")
    for s, tokens in zip(kept, _next_tokens(round, verdict, kept), strict=True):
        token_ids.extend(tokens)
        positions.extend(range(starts[s], starts[s] + lengths[s]))
    hidden_rows = None
    if len(positions) < hidden.shape[0]:
        only_accepted = sum(lengths) == hidden.shape[0]
        firsts = [0, *accumulate(lengths)] if only_accepted else round.query_offsets.tolist()
        hidden_rows = ints([row for s in kept for row in range(firsts[s], firsts[s] + lengths[s])])
    whole = len(kept) == round.sequences
    return Pairs(
        sequence_ids=round.sequence_ids if whole else round.sequence_ids[kept],
        lengths=verdict.accepted_rows if whole else verdict.accepted_rows[kept],
        token_ids=as_ints(token_ids),
        positions=as_ints(positions),
        hidden=hidden,
        write_from=round.write_from if whole else round.write_from[kept],
        first_slots=round.followed_from if whole else round.followed_from[kept],
        tables=tuple(block_table(round, s) for s in kept),
        hidden_rows=hidden_rows,
    )


def joined(parts: Sequence[Pairs]) -> Pairs:
    """Concatenates the pairs. A sequence may occur more than once."""
    if len(parts) == 1:
        return parts[0]
    return Pairs(
        sequence_ids=np.concatenate([part.sequence_ids for part in parts]),
        lengths=np.concatenate([part.lengths for part in parts]),
        token_ids=np.concatenate([part.token_ids for part in parts]),
        positions=np.concatenate([part.positions for part in parts]),
        hidden=torch.cat([part.hidden for part in parts]),
        write_from=np.concatenate([part.write_from for part in parts]),
        first_slots=np.concatenate([part.first_slots for part in parts]),
        tables=tuple(table for part in parts for table in part.tables),
        hidden_rows=_joined_rows(parts),
    )


def _joined_rows(parts: Sequence[Pairs]) -> IntArray | None:
    if all(part.hidden_rows is None for part in parts):
        return None
    firsts = accumulate([part.hidden.shape[0] for part in parts[:-1]], initial=0)
    return np.concatenate([first + _rows_in_hidden(part) for first, part in zip(firsts, parts, strict=True)])


def _rows_in_hidden(pairs: Pairs) -> IntArray:
    return np.arange(len(pairs)) if pairs.hidden_rows is None else pairs.hidden_rows


def pair_rows(pairs: Pairs) -> Rows:
    """The module's input rows: the pair of position i writes slot i+1 of its cache; slot 0 is never read."""
    rows = pairs.lengths, pairs.token_ids, pairs.positions
    return _rows(*rows, pairs.write_from, pairs.first_slots, pairs.tables)


def one_each(pairs: Pairs, which: IntArray, token_ids: IntArray, positions: IntArray) -> Rows:
    """One row for each of the entries `which`: a draft, whose state is the one that it was drawn from."""
    return rows_of(pairs, which, np.ones_like(which), token_ids, positions)


def rows_of(pairs: Pairs, which: IntArray, lengths: IntArray, token_ids: IntArray, positions: IntArray) -> Rows:
    """Rows of the entries `which` of `pairs`, `lengths` of each, with these tokens and pair positions."""
    tables = [pairs.tables[s] for s in which.tolist()]
    return _rows(lengths, token_ids, positions, pairs.write_from[which], pairs.first_slots[which], tables)


def _rows(
    lengths: IntArray,
    token_ids: IntArray,
    positions: IntArray,
    write_from: IntArray,
    first_slots: IntArray,
    tables: Sequence[IntArray],
) -> Rows:
    return Rows(
        token_ids=token_ids,
        rope_positions=positions,
        cache_positions=positions + 1,
        query_offsets=offsets(lengths),
        write_from=write_from,
        block_offsets=offsets([len(table) for table in tables]),
        block_ids=tables[0] if len(tables) == 1 else ints(np.concatenate([ints(), *tables])),
        first_slots=first_slots,
    )


def block_table(round: Round, sequence: int) -> IntArray:
    return round.block_ids[round.block_offsets[sequence] : round.block_offsets[sequence + 1]]


def _next_tokens(round: Round, verdict: Verdict, kept: list[int]) -> Iterator[list[int]]:
    """The token after every accepted row of each sequence: from the prompt, or emitted."""
    query, emitted = round.token_ids.tolist(), verdict.token_ids.tolist()
    borders, places = round.query_offsets.tolist(), verdict.token_offsets.tolist()
    samples, behind = round.sample_counts.tolist(), round.next_token_ids.tolist()
    for s in kept:
        first, end = borders[s] + 1, borders[s + 1]
        known = query[first : end - samples[s] + 1] if samples[s] else [*query[first:end], behind[s]]
        yield known + emitted[places[s] : places[s + 1]]


class Backlog:
    """Pairs that wait until drafts are needed again: many rows at once cost little more than one."""

    def __init__(self, most: int, block_size: int) -> None:
        self._most, self._block_size = most, block_size
        self._waiting: list[Pairs] = []

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __len__(self) -> int:
        return sum(len(part) for part in self._waiting)

    def has_room(self, pairs: Pairs) -> bool:
        return len(self) + len(pairs) <= self._most

    def add(self, pairs: Pairs) -> None:
        self._waiting.append(pairs)

    def take(self) -> list[Pairs]:
        taken, self._waiting = self._waiting, []
        return taken

    def drop_lost_blocks(self, round: Round) -> None:
        """Drops pairs whose blocks now belong to another sequence, since their own was preempted or ended."""
        if self._waiting:
            owner_of = self._writers(round)
            kept = (_without_foreign(part, owner_of, self._block_size) for part in self._waiting)
            self._waiting = [part for part in kept if len(part)]

    def _writers(self, round: Round) -> dict[int, int]:
        """The sequence that owns each block that this round, or drafts after it, may write."""
        owners: dict[int, int] = {}
        for s, sequence_id in enumerate(round.sequence_ids.tolist()):
            first = max(int(round.starts[s]), int(round.write_from[s])) // self._block_size
            owners.update((block, sequence_id) for block in block_table(round, s)[first:].tolist())
        return owners


def _without_foreign(pairs: Pairs, owner_of: dict[int, int], block_size: int) -> Pairs:
    """`pairs` without those whose block has another owner. Others are kept: their blocks may be in the prefix cache."""
    own = np.ones(len(pairs), dtype=bool)
    row = 0
    for sequence_id, length, table in zip(
        pairs.sequence_ids.tolist(), pairs.lengths.tolist(), pairs.tables, strict=True
    ):
        blocks = table[(pairs.positions[row : row + length] + 1) // block_size]
        own[row : row + length] = [owner_of.get(block, sequence_id) == sequence_id for block in blocks.tolist()]
        row += length
    return pairs if own.all() else _selected(pairs, own)


def _selected(pairs: Pairs, own: NDArray[np.bool_]) -> Pairs:
    """Only the pairs where `own` [N], and the sequences that have any of them."""
    rows = np.flatnonzero(own)
    left = np.bincount(np.repeat(np.arange(len(pairs.lengths)), pairs.lengths)[rows], minlength=len(pairs.lengths))
    kept = np.flatnonzero(left)
    return Pairs(
        sequence_ids=pairs.sequence_ids[kept],
        lengths=left[kept],
        token_ids=pairs.token_ids[rows],
        positions=pairs.positions[rows],
        hidden=pairs.hidden,
        hidden_rows=_rows_in_hidden(pairs)[rows],
        write_from=pairs.write_from[kept],
        first_slots=pairs.first_slots[kept],
        tables=tuple(pairs.tables[s] for s in kept.tolist()),
    )
