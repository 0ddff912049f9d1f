"""Brings the drafts that each data group made for its own sequences to the leader."""

import itertools

import torch

from outrider.workers.engine.round import IntArray, Round, owned
from outrider.workers.model.shard import Shard
from outrider.workers.parallel.collectives import Collectives
from outrider.workers.speculation.drafter import Draft

_LEADER = 0  # its place in the first stage's group


class SharedDrafts:
    """Every rank of the first stage takes part, with drafts or without."""

    def __init__(self, stage: Collectives, shard: Shard, device: torch.device) -> None:
        self._stage, self._shard, self._device = stage, shard, device
        self.data = shard.data

    def collect(self, round: Round, depths: IntArray, drafts: dict[int, list[Draft]]) -> dict[int, list[Draft]]:
        """All groups' drafts by sequence id, on the leader. `depths` [S] are how many each sequence has."""
        groups = [owned(round, data) for data in range(self._shard.datas)]
        most = max(int(depths[which].sum()) for which in groups)
        if not most:
            return {}
        own = [draft for s in groups[self.data].tolist() for draft in drafts.get(int(round.sequence_ids[s]), ())]
        flat = [(draft.token_id, draft.confidence) for draft in own]
        mine = torch.zeros(most, 2, dtype=torch.float64, device=self._device)  # a token's id is exact in it
        mine[: len(flat)] = torch.tensor(flat, dtype=torch.float64, device=self._device).view(-1, 2)
        parts = self._stage.gather(mine, "drafts", _LEADER)
        if self._stage.rank != _LEADER:
            return {}
        found: dict[int, list[Draft]] = {}
        for data, which in enumerate(groups):
            rows = iter(parts[data * self._shard.tensors].tolist())
            for s in which[depths[which] > 0].tolist():
                taken = itertools.islice(rows, int(depths[s]))
                found[int(round.sequence_ids[s])] = [Draft(int(token), lead) for token, lead in taken]
        return found
