"""Drafts with the model's own Multi-Token-Prediction module, by recursion (design: MTP, exactly).

Owns the drafter's cache layer through the module. Draws with the target's own noise and transforms, so that a
draft is accepted iff it equals what the target draws. Knows nothing of how deep to draft: the Round says.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from outrider.workers.engine.round import RUNNING, IntArray, Round, Verdict, ints, offsets
from outrider.workers.model.batch import Batch
from outrider.workers.model.mtp import MtpModules
from outrider.workers.speculation.pairs import Backlog, Pairs, accepted_pairs, joined
from outrider.workers.speculation.sampling import sample
from outrider.workers.speculation.sequence_starts import SequenceStarts

_MOST_WAITING = 64  # pairs; as many as are still cheap in one go


class MtpDrafter:
    """Implements Drafter. One per replica, on the first stage.

    While nobody drafts, its cache falls behind by a few dozen pairs, which are caught up with in one go.
    """

    def __init__(self, modules: MtpModules, starts: SequenceStarts, block_size: int, device: torch.device) -> None:
        self._modules, self._starts = modules, starts
        self._block_size, self._device = block_size, device
        self._backlog = Backlog(_MOST_WAITING, block_size)

    @torch.inference_mode()
    def draft(self, round: Round, verdict: Verdict, hidden: Tensor) -> Mapping[int, list[int]]:
        """Feeds the accepted rows, then drafts each going-on sequence as deep as the round says."""
        self._starts.begin(round.begins)
        self._backlog.yield_blocks(round)
        pairs = accepted_pairs(round, verdict, hidden)
        depths = np.where(verdict.finish == RUNNING, round.draft_steps, 0)
        depths = depths[np.isin(round.sequence_ids, pairs.sequence_ids)]
        ending = bool((verdict.finish != RUNNING).any())  # its blocks are free, and may be another's next
        if not depths.any() and not ending and self._backlog.has_room(pairs):
            self._backlog.add(pairs)
            return {}
        waiting = joined([*self._backlog.take(), pairs])
        state = self._forward(waiting)[len(waiting) - len(pairs) :]
        return self._recurse(pairs, state, depths) if depths.any() else {}

    def forget(self, sequence_ids: IntArray) -> None:
        self._starts.end(sequence_ids)

    def _recurse(self, pairs: Pairs, state: Tensor, depths: IntArray) -> dict[int, list[int]]:
        """Step j draws draft j from the state of step j, then feeds that draft and that state to step j+1."""
        drafts: dict[int, list[int]] = {int(pairs.sequence_ids[s]): [] for s in np.flatnonzero(depths)}
        going = np.flatnonzero(depths)
        rows = pairs.last_rows[going]
        state, positions = state[torch.from_numpy(rows)], pairs.positions[rows]
        for step in range(1, int(depths.max()) + 1):
            tokens = self._draw(state, pairs.sequence_ids[going], positions + 2)
            for sequence_id, token in zip(pairs.sequence_ids[going].tolist(), tokens.tolist(), strict=True):
                drafts[sequence_id].append(token)
            deeper = np.flatnonzero(depths[going] > step)
            if not len(deeper):
                break
            going, positions = going[deeper], positions[deeper] + 1
            fed = _one_each(pairs, going, tokens[deeper], positions, state[torch.from_numpy(deeper)])
            state = self._forward(fed)
        return drafts

    def _forward(self, pairs: Pairs) -> Tensor:
        """States after shared_head.norm, [N, hidden]."""
        batch = Batch.build(
            token_ids=pairs.token_ids,
            rope_positions=pairs.positions,
            cache_positions=pairs.positions + 1,
            query_offsets=offsets(pairs.lengths),
            write_from=pairs.write_from,
            block_offsets=offsets([len(table) for table in pairs.tables]),
            block_ids=ints(np.concatenate(pairs.tables)) if pairs.tables else ints(),
            first_cache_position=1,
            block_size=self._block_size,
            device=self._device,
        )
        return self._modules.forward(batch, pairs.hidden)

    def _draw(self, state: Tensor, sequence_ids: IntArray, positions: IntArray) -> IntArray:
        rows = self._starts.rows(sequence_ids, positions)
        return ints(sample(self._modules.logits(state), rows).cpu().numpy())


def _one_each(pairs: Pairs, which: IntArray, token_ids: IntArray, positions: IntArray, state: Tensor) -> Pairs:
    """One pair for each of the sequences `which`: a draft and the state it was drawn from."""
    return Pairs(
        sequence_ids=pairs.sequence_ids[which],
        lengths=np.ones_like(which),
        token_ids=token_ids,
        positions=positions,
        hidden=state,
        write_from=pairs.write_from[which],
        tables=tuple(pairs.tables[s] for s in which.tolist()),
    )
