"""Collects the drafts of all data groups on the leader."""

import itertools
from collections.abc import Mapping

import torch

from outrider.workers.parallel.collectives.collectives import Collectives
from outrider.workers.parallel.shard import Shard
from outrider.workers.types.rounds.drafts import Drafts
from outrider.workers.types.rounds.round import Round, owned

_LEADER = 0  # the leader's rank in the first stage's group
_NONE = -1  # padding for a draft that was not made


class SharedDrafts:
    """Collective: every rank of the first stage takes part, even without drafts."""

    def __init__(self, stage: Collectives, shard: Shard, device: torch.device) -> None:
        self._stage, self._shard, self._device = stage, shard, device
        self.data = shard.data

    def collect(self, round: Round, depths: Mapping[int, int], drafts: dict[int, Drafts]) -> dict[int, Drafts]:
        """All groups' drafts by sequence id, on the leader. `depths`: most drafts of each sequence."""
        groups = [round.sequence_ids[owned(round, data)].tolist() for data in range(self._shard.datas)]
        most = max(sum(depths.get(sequence_id, 0) for sequence_id in group) for group in groups)
        if not most:
            return {}
        flat = list[tuple[int, float]]()
        for sequence_id in groups[self.data]:
            own = drafts.get(sequence_id, Drafts([], []))
            flat += zip(own.token_ids, own.confidences, strict=True)
            flat += [(_NONE, 0.0)] * (depths.get(sequence_id, 0) - len(own))
        mine = torch.zeros(most, 2, dtype=torch.float64, device=self._device)  # float64 holds token ids exactly
        mine[: len(flat)] = torch.tensor(flat, dtype=torch.float64, device=self._device).view(-1, 2)
        parts = self._stage.gather(mine, "drafts", _LEADER)
        if self._stage.rank != _LEADER:
            return {}
        found: dict[int, Drafts] = {}
        for data, group in enumerate(groups):
            rows = iter(parts[data * self._shard.tensors].tolist())
            for sequence_id in group:
                if depth := depths.get(sequence_id, 0):
                    taken = [row for row in itertools.islice(rows, depth) if row[0] != _NONE]
                    found[sequence_id] = Drafts([int(token) for token, _ in taken], [lead for _, lead in taken])
        return found
