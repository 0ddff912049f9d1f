"""Chooses the next round: which sequences, how many tokens of each, and how many drafts to make after it. Pure."""

from collections.abc import Iterable, Mapping

from outrider.workers.engine.scheduling.limits import SchedulerConfig
from outrider.workers.engine.scheduling.residents import Residents
from outrider.workers.engine.scheduling.round_builder import RoundBuilder
from outrider.workers.types.rounds.draft_plan import NO_DRAFTS, DraftPlan
from outrider.workers.types.rounds.sequence import Sequence
from outrider.workers.types.rounds.stop_rule import NEVER_STOP

_PREFILL_SHARE = 4  # prefills get at least 1 / _PREFILL_SHARE of a round's tokens


class RoundComposer:
    """Schedules decodes first (longest waiting first), then prefills by arrival, then newly admitted sequences.

    A round takes at most 1 / lanes of the sequences, so that all lanes have work.
    """

    def __init__(self, config: SchedulerConfig, plans: Mapping[int, DraftPlan], residents: Residents) -> None:
        self._config, self._plans, self._residents = config, plans, residents
        self._remainder = 0  # of the division by _PREFILL_SHARE, carried over to the next round

    def compose(self) -> RoundBuilder:
        """Builds the next round and marks its sequences as in flight. Empty if none is ready."""
        builder = RoundBuilder()
        running, waiting = self._residents.running, self._residents.waiting
        ready = self._residents.ready.values()
        decodes = [s for s in ready if len(s.token_ids) - s.start == 1]
        prefills = sorted((s for s in ready if len(s.token_ids) - s.start > 1), key=lambda s: s.sequence_id)
        most, most_with_admitted = self._lane_share(len(running)), self._lane_share(len(running) + len(waiting))
        budget = self._config.max_num_batched_tokens
        reserved = self._reserve_for_prefills() if prefills or self._residents.may_admit else 0
        budget = reserved + self._place_all(builder, decodes, budget - reserved, most)
        budget = self._place_all(builder, prefills, budget, most)
        budget = self._admit(builder, budget, most_with_admitted)
        if reserved:
            self._place_all(builder, decodes, budget, most)  # tokens reserved for prefills but not used
        return builder

    def _lane_share(self, sequences: int) -> int:
        """Most sequences of one round."""
        return -(-min(sequences, self._config.max_num_seqs) // self._config.lanes)

    def _reserve_for_prefills(self) -> int:
        """Tokens of this round reserved for prefills. The remainder carries over, so the share is exact on average."""
        reserved, self._remainder = divmod(self._remainder + self._config.max_num_batched_tokens, _PREFILL_SHARE)
        return reserved

    def _place_all(self, builder: RoundBuilder, sequences: Iterable[Sequence], budget: int, most: int) -> int:
        """Adds sequences in order, up to `budget` tokens and `most` sequences; returns the remaining budget."""
        for sequence in sequences:
            if budget <= 0 or len(builder) >= most:
                break
            if sequence.sequence_id in self._residents.ready:  # not yet in this round and not preempted
                budget -= self._place(builder, sequence, budget)
        return budget

    def _admit(self, builder: RoundBuilder, budget: int, most: int) -> int:
        """Admits waiting sequences in order while tokens and blocks are left; returns the remaining budget."""
        while budget > 0 and len(builder) < most:
            sequence = self._residents.admit_next()
            if sequence is None:
                break
            budget -= self._place(builder, sequence, budget)
        return budget

    def _place(self, builder: RoundBuilder, sequence: Sequence, budget: int) -> int:
        """Adds the ready sequence to the round; returns its number of rows, 0 if there are too few free blocks.

        Reserves slots for its rows, for the drafter's entry at the next position, and for the drafts to be made.
        """
        plan = self._plans.get(sequence.sequence_id, NO_DRAFTS)
        start, follows = sequence.start, int(plan.follows)
        pending = len(sequence.token_ids) - start
        rows = min(pending + len(sequence.drafts), budget)
        steps = self._draft_steps(sequence, plan.depth, rows - pending) if plan.depth and rows >= pending else 0
        slots = start + rows + follows
        granted = self._residents.reserve(sequence, slots + steps, start + 1 + follows)
        if granted == 0:
            return 0
        rows = min(rows, granted - follows - start)
        steps = max(0, min(steps, granted - slots)) if rows >= pending else 0
        self._residents.start_round(sequence)
        if plan is not NO_DRAFTS or sequence.followed:  # else: rows to follow may be pending
            builder.drafter_needed = True
        sequence.follow(plan.follows)
        builder.add(sequence, rows, steps, plan.stop if steps > 1 else NEVER_STOP)
        return rows

    def _draft_steps(self, sequence: Sequence, depth: int, drafts: int) -> int:
        """How many of `depth` drafts the limits allow after a round that verifies `drafts`, whatever it accepts."""
        length = len(sequence.token_ids)
        most = min(
            sequence.draft_ceiling,
            self._config.max_num_batched_tokens - 1,
            sequence.limit - length - 2,
            self._config.max_model_len - length - drafts - 1,
        )
        return min(depth, most) if most > 0 else 0
