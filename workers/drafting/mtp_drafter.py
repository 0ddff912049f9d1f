"""Drafts with the model's own Multi-Token-Prediction modules; the last one runs repeatedly (docs/explanation/mtp.md).

Owns the drafter's cache layers through the model. Samples with the same noise and transforms as the model, so a draft
is accepted iff the model draws the same token. The Round says how many drafts to make.
"""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from outrider.workers.drafting.draft_model import AllGroups, DraftModel, DraftRequest
from outrider.workers.drafting.pairs import Backlog, Pairs, accepted_pairs, followed, joined
from outrider.workers.drafting.shared_drafts import SharedDrafts
from outrider.workers.sampling.sequence_starts import SequenceStarts
from outrider.workers.types.rounds.drafts import Drafts
from outrider.workers.types.rounds.round import (
    RUNNING,
    STOP_RULE,
    FloatArray,
    IntArray,
    Round,
    Verdict,
    ints,
    most_of_a_group,
    share_of,
    verdict_for,
)

_MOST_WAITING = 8  # pairs; few, so that catching up costs little


class MtpDrafter:
    """Implements Drafter on every rank of the first stage; each drafts for the sequences of its data group.

    While drafting is disabled, its cache may fall behind by up to `most_waiting` pairs, which are then processed
    together. It acts only on the round and the verdict, so all ranks do the same at the same time.
    """

    def __init__(
        self,
        model: DraftModel,
        starts: SequenceStarts,
        block_size: int,
        most_waiting: int = _MOST_WAITING,
        shared: SharedDrafts | None = None,
    ) -> None:
        """`shared`: with several data groups, collects their drafts on the leader."""
        self._model, self._starts, self._shared = model, starts, shared
        self._data = shared.data if shared is not None else 0
        self._most_waiting = most_waiting
        self._backlog = Backlog(most_waiting, block_size)
        self._behind = 0  # pairs waiting in all data groups together

    def draft(self, round: Round, verdict: Verdict, hidden: Tensor) -> Mapping[int, Drafts]:
        """Feeds the accepted rows, then makes the round's number of drafts for each sequence that continues.

        `hidden`: states of this data group's accepted rows. The leader returns the drafts of all data groups.
        """
        if round.prepares or round.begins:
            self._starts.prepare(round.prepares)
            self._starts.begin(round.begins)
        self._starts.write_verdict(round, verdict)
        all_followed = followed(round, verdict)
        if not all_followed and not self._waits:
            return {}
        self._backlog.drop_lost_blocks(share_of(round, self._data))
        ending = verdict.finish.any()  # an ended sequence's blocks may be reused next
        depths, stop_rules = _depths(round, verdict, all_followed), _stop_rules(round)
        pairs = self._own_pairs(round, verdict, hidden, all_followed)
        gained = sum(verdict.accepted_rows[s] for s in all_followed)
        if gained and not any(depths.values()) and not ending and self._may_wait(pairs, int(gained)):
            self._backlog.add(pairs)
            return {}
        groups = None if self._shared is None else self._all_groups(round, verdict, depths, all_followed)
        drafts = self._catch_up(pairs, depths, stop_rules, groups)
        return drafts if self._shared is None else self._shared.collect(round, depths, drafts)

    @property
    def _waits(self) -> bool:
        """Whether the cache of any data group is behind."""
        return bool(self._behind if self._shared is not None else self._backlog)

    def _pairs(self, round: Round, verdict: Verdict, hidden: Tensor, kept: list[int]) -> Pairs:
        """The accepted pairs of the round's sequences `kept`."""
        return accepted_pairs(round, verdict, hidden, kept)

    def forget(self, sequence_ids: IntArray) -> None:
        self._starts.end(sequence_ids)
        self._model.forget(sequence_ids)

    def _own_pairs(self, round: Round, verdict: Verdict, hidden: Tensor, all_followed: list[int]) -> Pairs:
        """The accepted pairs of this data group's followed sequences."""
        if self._shared is None:
            return self._pairs(round, verdict, hidden, all_followed)
        own, its = share_of(round, self._data), verdict_for(round, verdict, self._data)
        return self._pairs(own, its, hidden, followed(own, its))

    def _may_wait(self, pairs: Pairs, gained: int) -> bool:
        """Whether these pairs can wait. All data groups decide alike."""
        if self._shared is None:
            return self._backlog.has_room(pairs)
        self._behind += gained
        return self._behind <= self._most_waiting

    def _all_groups(
        self, round: Round, verdict: Verdict, depths: Mapping[int, int], all_followed: list[int]
    ) -> AllGroups:
        """Of the pairs and drafts of this round, and the pairs that wait."""
        fed = np.zeros(round.sequences, dtype=np.int64)
        fed[all_followed] = verdict.accepted_rows[all_followed]
        drafting = ints([depths.get(sequence_id, 0) > 0 for sequence_id in round.sequence_ids.tolist()])
        pairs, drafts = (most_of_a_group(round, each) for each in (fed, drafting))
        return AllGroups(steps=max(depths.values(), default=0), pairs=self._behind + pairs, drafts=drafts)

    def _catch_up(
        self,
        pairs: Pairs,
        depths: Mapping[int, int],
        stop_rules: Mapping[int, FloatArray],
        groups: AllGroups | None,
    ) -> dict[int, Drafts]:
        """Feeds the waiting pairs and `pairs`, then drafts for the sequences in `pairs`. `depths`: by sequence id."""
        waiting = joined([*self._backlog.take(), pairs])
        self._behind = 0
        if not len(waiting) and groups is None:
            return {}
        ids = pairs.sequence_ids.tolist()
        going = [n for n, sequence_id in enumerate(ids) if depths.get(sequence_id)]
        own = ints([depths[ids[n]] for n in going])
        entries = ints(going) + (len(waiting.lengths) - len(ids))
        ends = np.array([stop_rules[ids[n]] for n in going]) if stop_rules and going else None
        drafts = self._model.draft(waiting, DraftRequest(entries, own, groups, ends))
        return dict(zip([ids[n] for n in going], drafts, strict=True))


def _stop_rules(round: Round) -> dict[int, FloatArray]:
    """Stop rules by sequence id; empty: no early stopping."""
    rows = round.stop_rules.reshape(-1, STOP_RULE)
    return dict(zip(round.sequence_ids.tolist(), rows, strict=True)) if len(rows) else {}


def _depths(round: Round, verdict: Verdict, all_followed: list[int]) -> dict[int, int]:
    """Number of drafts to make, by sequence id, for the sequences of `all_followed` that continue."""
    ids, steps, finish = round.sequence_ids.tolist(), round.draft_steps.tolist(), verdict.finish.tolist()
    return {ids[s]: steps[s] for s in all_followed if finish[s] == RUNNING}
