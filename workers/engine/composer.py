"""Chooses what runs in the next round: who, how many of its tokens, and how many drafts after it. Pure policy."""

from collections.abc import Iterable, Mapping

from outrider.workers.engine.limits import SchedulerConfig
from outrider.workers.engine.residents import Residents
from outrider.workers.engine.round_builder import RoundBuilder
from outrider.workers.types.draft_plan import NO_DRAFTS, DraftPlan
from outrider.workers.types.sequence import Sequence
from outrider.workers.types.stop_rule import NEVER_STOP

_PREFILL_SHARE = 4  # waiting prefills get at least one token in so many


class RoundComposer:
    """Decodes first, longest waiting first; then prefills by arrival; then whom the queue admits.

    A round takes no more than a lane's share of the sequences, so that the lanes share the work.
    """

    def __init__(self, config: SchedulerConfig, plans: Mapping[int, DraftPlan], residents: Residents) -> None:
        self._config, self._plans, self._residents = config, plans, residents
        self._owed = 0  # to prefills, in 1/_PREFILL_SHARE of a token: what rounding down left

    def compose(self) -> RoundBuilder:
        """The next round; its sequences are in flight from now on. Empty if none is ready."""
        builder = RoundBuilder()
        running, waiting = self._residents.running, self._residents.waiting
        ready = self._residents.ready.values()
        decodes = [s for s in ready if len(s.token_ids) - s.start == 1]
        prefills = sorted((s for s in ready if len(s.token_ids) - s.start > 1), key=lambda s: s.sequence_id)
        seats, admission_seats = self._seats(len(running)), self._seats(len(running) + len(waiting))
        budget = self._config.max_num_batched_tokens
        reserved = self._reserve_for_prefills() if prefills or self._residents.may_admit else 0
        budget = reserved + self._place_all(builder, decodes, budget - reserved, seats)
        budget = self._place_all(builder, prefills, budget, seats)
        budget = self._admit(builder, budget, admission_seats)
        if reserved:
            self._place_all(builder, decodes, budget, seats)  # what prefills could not use
        return builder

    def _seats(self, sequences: int) -> int:
        """A lane's share of the sequences."""
        return -(-min(sequences, self._config.max_num_seqs) // self._config.lanes)

    def _reserve_for_prefills(self) -> int:
        """Tokens of this round that decodes leave to prefills: their share, exact over several small rounds."""
        reserved, self._owed = divmod(self._owed + self._config.max_num_batched_tokens, _PREFILL_SHARE)
        return reserved

    def _place_all(self, builder: RoundBuilder, sequences: Iterable[Sequence], budget: int, seats: int) -> int:
        """Places the sequences in order while budget and seats last; returns what is left of the budget."""
        for sequence in sequences:
            if budget <= 0 or len(builder) >= seats:
                break
            if sequence.sequence_id in self._residents.ready:  # neither placed nor preempted meanwhile
                budget -= self._place(builder, sequence, budget)
        return budget

    def _admit(self, builder: RoundBuilder, budget: int, seats: int) -> int:
        """Admits and places the waiting in order while budget, seats and blocks last; returns the budget left."""
        while budget > 0 and len(builder) < seats:
            sequence = self._residents.admit_next()
            if sequence is None:
                break
            budget -= self._place(builder, sequence, budget)
        return budget

    def _place(self, builder: RoundBuilder, sequence: Sequence, budget: int) -> int:
        """Puts the ready sequence into the round; returns its rows, 0 where blocks are lacking.

        Slots are reserved for its rows, for the drafter's entry one place further, and for the drafts to be made.
        """
        plan = self._plans.get(sequence.sequence_id, NO_DRAFTS)
        start, upkeep = sequence.start, int(plan.follows)
        pending = len(sequence.token_ids) - start
        rows = min(pending + len(sequence.drafts), budget)
        steps = self._draft_steps(sequence, plan.depth, rows - pending) if plan.depth and rows >= pending else 0
        slots = start + rows + upkeep
        granted = self._residents.reserve(sequence, slots + steps, start + 1 + upkeep)
        if granted == 0:
            return 0
        rows = min(rows, granted - upkeep - start)
        steps = max(0, min(steps, granted - slots)) if rows >= pending else 0
        self._residents.depart(sequence)
        if plan is not NO_DRAFTS or sequence.followed:  # one that is followed no longer may have rows that wait
            builder.drafter_needed = True
        sequence.follow(plan.follows)
        builder.add(sequence, rows, steps, plan.stop if steps > 1 else NEVER_STOP)
        return rows

    def _draft_steps(self, sequence: Sequence, depth: int, drafts: int) -> int:
        """Of `depth` drafts those to make after a round that verifies `drafts`: within every limit, in any case."""
        length = len(sequence.token_ids)
        most = min(
            sequence.draft_ceiling,
            self._config.max_num_batched_tokens - 1,
            sequence.limit - length - 2,
            self._config.max_model_len - length - drafts - 1,
        )
        return min(depth, most) if most > 0 else 0
