"""The head of a stage with several ranks: each computes a slice of its rows' logits; the sampler gathers them."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from outrider.workers.parallel.collectives.collectives import Collectives
from outrider.workers.parallel.shard import Shard
from outrider.workers.parallel.sharing import joined_columns
from outrider.workers.sampling.head import Head
from outrider.workers.types.rounds.round import IntArray, Round, ints, offsets, owned

_SAMPLER = 0  # the sampler's rank in the last stage's group


class SharedHead:
    """`head` computes this rank's slice of the vocabulary."""

    def __init__(self, head: Head, stage: Collectives, shard: Shard, vocab_size: int) -> None:
        self._head, self._stage, self._shard = head, stage, shard
        self._cut = shard.vocabulary(vocab_size)
        self.data = shard.data

    def logits(self, round: Round, hidden: Tensor, rows: IntArray) -> Tensor:
        """The logits [n, vocab] of rows `rows` [n] of the round, on the sampler; on other ranks [0, vocab].

        `hidden`: states after the final norm, [rows of this data group, hidden].
        """
        groups = [_rows_of(round, data, rows) for data in range(self._shard.datas)]  # places in `rows`
        part = self._head.logits(hidden, _in_share(round, self.data, rows[groups[self.data]]))  # [own n, own slice]
        most = max(map(len, groups))
        filled = functional.pad(part, (0, self._cut.widest - part.shape[1], 0, most - len(part)))
        parts = self._stage.gather(filled, "logits", _SAMPLER)  # [data x tensor, most n, widest]
        if self._stage.rank != _SAMPLER:
            return part.new_empty(0, self._cut.size)
        if self._shard.datas == 1:
            return joined_columns(parts, self._cut)
        out = part.new_empty(len(rows), self._cut.size)
        for own, places in zip(parts.view(self._shard.datas, self._shard.tensors, *filled.shape), groups, strict=True):
            out[torch.from_numpy(places).to(out.device)] = joined_columns(own, self._cut)[: len(places)]
        return out


def _rows_of(round: Round, data: int, rows: IntArray) -> IntArray:
    """Indexes into `rows` of those of data group `data`."""
    if not len(round.owners):
        return np.arange(len(rows))
    return ints(np.flatnonzero(round.owners[_sequences(round, rows)] == data))


def _in_share(round: Round, data: int, rows: IntArray) -> IntArray:
    """Translates `rows` of the round, all of data group `data`, to rows of that group's share."""
    if not len(round.owners):
        return rows
    which = owned(round, data)
    firsts = np.zeros(round.sequences, dtype=np.int64)
    firsts[which] = offsets(np.diff(round.query_offsets)[which])[:-1]
    sequences = _sequences(round, rows)
    return firsts[sequences] + rows - round.query_offsets[sequences]


def _sequences(round: Round, rows: IntArray) -> IntArray:
    return ints(np.searchsorted(round.query_offsets, rows, side="right") - 1)
