"""Drafts with the model's own Multi-Token-Prediction module, by recursion (design: MTP, exactly).

Owns the drafter's cache layer through the model. Draws with the target's own noise and transforms, so that a
draft is accepted iff it equals what the target draws. Knows nothing of how deep to draft: the Round says.
"""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from outrider.workers.engine.round import RUNNING, IntArray, Round, Verdict
from outrider.workers.speculation.drafter import Draft
from outrider.workers.speculation.model_parts import DraftModel
from outrider.workers.speculation.pairs import Backlog, Pairs, accepted_pairs, followed, joined
from outrider.workers.speculation.sequence_starts import SequenceStarts

_MOST_WAITING = 8  # pairs; few, so that a draft after a pause costs little more than another


class MtpDrafter:
    """Implements Drafter. One per replica, on the first stage.

    While nobody drafts, its cache falls behind by up to `most_waiting` pairs, which are caught up with in one go.
    """

    def __init__(
        self, model: DraftModel, starts: SequenceStarts, block_size: int, most_waiting: int = _MOST_WAITING
    ) -> None:
        self._model, self._starts = model, starts
        self._backlog = Backlog(most_waiting, block_size)

    def draft(self, round: Round, verdict: Verdict, hidden: Tensor) -> Mapping[int, list[Draft]]:
        """Feeds the accepted rows, then drafts each going-on sequence as deep as the round says."""
        self._starts.begin(round.begins)
        self._starts.write_verdict(round, verdict)
        self._backlog.yield_blocks(round)
        kept = followed(round, verdict)
        pairs = self._pairs(round, verdict, hidden, kept)
        depths = np.where(verdict.finish == RUNNING, round.draft_steps, 0)[kept]
        ending = bool((verdict.finish != RUNNING).any())  # its blocks are free, and may be another's next
        if not depths.any() and not ending and self._backlog.has_room(pairs):
            self._backlog.add(pairs)
            return {}
        waiting = joined([*self._backlog.take(), pairs])
        if not len(waiting):
            return {}
        live = np.flatnonzero(depths)
        before = len(waiting.lengths) - len(pairs.lengths)
        drafts = self._model.draft(waiting, before + live, depths[live])
        return dict(zip(pairs.sequence_ids[live].tolist(), drafts, strict=True))

    def _pairs(self, round: Round, verdict: Verdict, hidden: Tensor, kept: IntArray) -> Pairs:
        """What the verdict makes certain of the round's sequences `kept`."""
        return accepted_pairs(round, verdict, hidden, kept)

    def forget(self, sequence_ids: IntArray) -> None:
        self._starts.end(sequence_ids)
