"""Drafts with the model's own Multi-Token-Prediction modules, by recursion (design: MTP, exactly).

Owns the drafter's cache layers through its modules. Draws with the target's own noise and transforms, so that a
draft is accepted iff it equals what the target draws. Knows nothing of how deep to draft: the Round says.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from outrider.workers.engine.round import RUNNING, IntArray, Round, Verdict, offsets, ranges
from outrider.workers.model.batch import Batch
from outrider.workers.model.mtp import MtpModules
from outrider.workers.speculation.sampling import sample
from outrider.workers.speculation.sequence_starts import SequenceStarts


class MtpDrafter:
    """Implements Drafter. One per replica, on the first stage."""

    def __init__(self, modules: MtpModules, starts: SequenceStarts, block_size: int, device: torch.device) -> None:
        self._modules = modules
        self._starts = starts
        self._block_size = block_size
        self._device = device

    @torch.inference_mode()
    def draft(self, round: Round, verdict: Verdict, hidden: Tensor) -> Mapping[int, list[int]]:
        """Feeds the accepted rows, then drafts each going-on sequence as deep as the round says."""
        self._starts.begin(round.begins)
        kept = np.flatnonzero((round.upkeep == 1) & (verdict.accepted_rows > 0))
        if not len(kept):
            return {}
        rows = _AcceptedRows(round, verdict, kept)
        state = self._forward(1, round, kept, rows.lengths, rows.tokens, rows.positions, hidden[rows.in_hidden])
        depths = np.where(verdict.finish[kept] == RUNNING, round.draft_steps[kept], 0)
        return self._recurse(round, kept, depths, rows, state)

    def forget(self, sequence_ids: IntArray) -> None:
        self._starts.end(sequence_ids)

    def _recurse(
        self, round: Round, kept: IntArray, depths: IntArray, rows: "_AcceptedRows", state: Tensor
    ) -> dict[int, list[int]]:
        """Step j draws draft j from the state of step j, then feeds that draft and that state to step j+1."""
        drafts: dict[int, list[int]] = {
            int(round.sequence_ids[s]): [] for s, depth in zip(kept, depths, strict=True) if depth
        }
        last = np.cumsum(rows.lengths) - 1
        going = np.flatnonzero(depths > 0)  # indices into kept
        state, positions = state[torch.from_numpy(last[going])], rows.positions[last[going]]
        for step in range(1, int(depths.max(initial=0)) + 1):
            ids = round.sequence_ids[kept[going]]
            tokens = self._draw(state, ids, positions + 2)
            for sequence_id, token in zip(ids, tokens, strict=True):
                drafts[int(sequence_id)].append(int(token))
            deeper = np.flatnonzero(depths[going] > step)
            if not len(deeper):
                break
            going, positions = going[deeper], positions[deeper] + 1
            ones = np.ones(len(going), dtype=np.int64)
            state = state if len(deeper) == len(state) else state[torch.from_numpy(deeper)]
            state = self._forward(step + 1, round, kept[going], ones, tokens[deeper], positions, state)
        return drafts

    def _forward(
        self,
        step: int,
        round: Round,
        sequences: IntArray,
        lengths: IntArray,
        tokens: IntArray,
        positions: IntArray,
        hidden: Tensor,
    ) -> Tensor:
        """States after shared_head.norm of rows (h_i, t_{i+1}), [rows, hidden]: position i, cache slot i+1."""
        tables = [round.block_ids[round.block_offsets[s] : round.block_offsets[s + 1]] for s in sequences]
        batch = Batch.build(
            token_ids=tokens,
            rope_positions=positions,
            cache_positions=positions + 1,
            query_offsets=offsets(lengths),
            write_from=round.write_from[sequences],
            block_offsets=offsets([len(t) for t in tables]),
            block_ids=np.concatenate(tables),
            first_cache_position=1,
            block_size=self._block_size,
            device=self._device,
        )
        return self._modules.forward(step, batch, hidden)

    def _draw(self, state: Tensor, sequence_ids: IntArray, positions: IntArray) -> IntArray:
        rows = self._starts.rows(sequence_ids, positions)
        return sample(self._modules.logits(state), rows).cpu().numpy()


class _AcceptedRows:
    """The rows (h_i, t_{i+1}) that a verdict makes certain, for the kept sequences, end to end."""

    def __init__(self, round: Round, verdict: Verdict, kept: IntArray) -> None:
        self.lengths: IntArray = verdict.accepted_rows[kept]
        within = ranges(self.lengths)  # row's place in its sequence's query
        owner = np.repeat(kept, self.lengths)
        in_hidden = offsets(verdict.accepted_rows)[:-1]
        self.in_hidden = torch.from_numpy(in_hidden[owner] + within)
        self.positions: IntArray = round.starts[owner] + within
        self.tokens: IntArray = _next_tokens(round, verdict)[round.query_offsets[owner] + within]


def _next_tokens(round: Round, verdict: Verdict) -> IntArray:
    """For every row of the round the token that follows it: the prompt's, or the one the verdict emitted, [R]."""
    following = np.append(round.token_ids[1:], 0)
    lasts = round.query_offsets[1:] - 1
    following[lasts] = round.next_token_ids
    emitted = np.diff(verdict.token_offsets)
    first_sampled = round.query_offsets[1:] - round.sample_counts
    following[np.repeat(first_sampled, emitted) + ranges(emitted)] = verdict.token_ids
    return following
