"""Collects the sequences of a round into the Round's flat arrays. Makes no decisions."""

from array import array
from collections.abc import Sequence as Ids

import numpy as np

from outrider.workers.types.rounds.round import Round, as_ints, ints
from outrider.workers.types.rounds.sequence import Sequence
from outrider.workers.types.rounds.stop_rule import NEVER_STOP, StopRule


class RoundBuilder:
    """A round under construction; `len` is its number of sequences."""

    def __init__(self) -> None:
        self._sequence_ids = array("q")
        self._query_offsets = array("q", [0])
        self._token_ids = array("q")
        self._starts = array("q")
        self._write_from = array("q")
        self._sample_counts = array("q")
        self._score_counts = array("q")
        self._next_token_ids = array("q")
        self._block_offsets = array("q", [0])
        self._block_ids = array("q")
        self._owners = array("q")
        self._draft_steps = array("q")
        self._stop_rules = array("d")
        self._upkeep = array("q")
        self._followed_from = array("q")
        self.begins: list[Sequence] = []  # in their first round
        self.drafter_needed = False

    def __len__(self) -> int:
        return len(self._sequence_ids)

    def add(self, sequence: Sequence, rows: int, draft_steps: int, stop_rule: StopRule = NEVER_STOP) -> None:
        """Adds the sequence's next `rows` query tokens: tokens not computed yet, then its drafts.

        `stop_rule`: when to stop drafting before `draft_steps` drafts are made.
        """
        tokens = sequence.token_ids
        end = sequence.start + rows
        drafts = end - len(tokens)  # negative if the chunk ends before the sequence's tokens
        self._sequence_ids.append(sequence.sequence_id)
        self._token_ids.extend(tokens[sequence.start : end])
        if drafts > 0:
            self._token_ids.extend(sequence.drafts[:drafts])
        self._query_offsets.append(len(self._token_ids))
        self._starts.append(sequence.start)
        self._write_from.append(sequence.computed)
        self._sample_counts.append(drafts + 1 if drafts >= 0 else 0)
        self._score_counts.append(sequence.rows_to_score(end - max(0, drafts + 1)))
        self._next_token_ids.append(0 if drafts >= 0 else tokens[end])
        self._block_ids.extend(sequence.blocks)
        self._block_offsets.append(len(self._block_ids))
        self._owners.append(sequence.owner)
        self._draft_steps.append(draft_steps)
        self._stop_rules.extend(stop_rule)
        self._upkeep.append(sequence.followed)
        self._followed_from.append(sequence.followed_from)
        if not sequence.begun:
            sequence.begun = True
            self.begins.append(sequence)

    def build(
        self, round_id: int, lane: int, ends: Ids[int], *, several_groups: bool = False, may_skip_drafter: bool = False
    ) -> Round:
        """`may_skip_drafter`: do not call the drafter after rounds that do not need it."""
        call_drafter = self.drafter_needed or not may_skip_drafter or len(self.begins) > 0 or len(ends) > 0
        return Round(
            round_id=round_id,
            lane=lane,
            sequence_ids=as_ints(self._sequence_ids),
            query_offsets=as_ints(self._query_offsets),
            token_ids=as_ints(self._token_ids),
            starts=as_ints(self._starts),
            write_from=as_ints(self._write_from),
            sample_counts=as_ints(self._sample_counts),
            score_counts=as_ints(self._score_counts),
            next_token_ids=as_ints(self._next_token_ids),
            block_offsets=as_ints(self._block_offsets),
            block_ids=as_ints(self._block_ids),
            owners=as_ints(self._owners) if several_groups else ints(),
            draft_steps=as_ints(self._draft_steps),
            stop_rules=np.frombuffer(self._stop_rules if any(self._stop_rules) else b""),
            follows=as_ints(self._upkeep) if call_drafter else ints(),
            followed_from=as_ints(self._followed_from),
            begins=tuple(sequence.sequence_start() for sequence in self.begins),
            ends=ints(ends),
        )
