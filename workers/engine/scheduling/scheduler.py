"""Turns requests into rounds, and verdicts into chunks. A state machine without tensors, clocks or threads.

After `commit`, other sequences may read the blocks that the round filled. So the drafter must follow the round's
accepted rows, including those of ended sequences, before the next round runs.
"""

from collections.abc import Mapping
from itertools import count

from outrider.workers.engine.scheduling.composer import RoundComposer
from outrider.workers.engine.scheduling.limits import SchedulerConfig
from outrider.workers.engine.scheduling.outcome import SequenceOutcome, cancelled_chunk, gained_chunk, outcomes
from outrider.workers.engine.scheduling.residents import Residents
from outrider.workers.engine.scheduling.round_builder import RoundBuilder
from outrider.workers.types.counters import EngineCounters
from outrider.workers.types.requests.request import Request, SequenceChunk
from outrider.workers.types.rounds.draft_plan import NoDrafting, Planner
from outrider.workers.types.rounds.round import Round, Verdict
from outrider.workers.types.rounds.round_time import RoundTiming
from outrider.workers.types.rounds.sequence import Sequence

__all__ = ["Scheduler", "SchedulerConfig"]


class Scheduler:
    """Drafts follow the `planner`'s plans, as far as limits and free blocks allow."""

    def __init__(self, config: SchedulerConfig, planner: Planner | None = None) -> None:
        planner = NoDrafting() if planner is None else planner
        self._config = config
        self._residents = Residents(config, planner)
        self._composer = RoundComposer(config, planner.plans, self._residents)
        self._requests: dict[str, list[Sequence]] = {}  # unfinished sequences
        self._in_flight: list[int | None] = [None] * config.lanes  # round id, by lane
        self._ends: list[int] = []
        self._sequence_ids = count()
        self._round_ids = count()
        self._tokens = 0  # of all unfinished sequences
        self._counters = EngineCounters()

    @property
    def has_work(self) -> bool:
        """Whether a sequence is running or may be admitted. Sequences that wait for `release` do not count."""
        return bool(self._residents.running) or len(self._residents.waiting) > 0

    def idle(self, lane: int) -> bool:
        """Whether the lane has no round in flight."""
        return self._in_flight[lane] is None

    @property
    def counters(self) -> EngineCounters:
        """The live counters. Written by the scheduler's thread only."""
        return self._counters

    def reset_counters(self) -> None:
        """Replaces the counters by new ones; the old object keeps its values."""
        self._counters = EngineCounters()
        self._update_gauges()

    def live(self, sequence_id: int) -> Sequence | None:
        """The running sequence with that id. Callers must not modify it; only for the engine's thread."""
        return self._residents.running.get(sequence_id)

    def unfollow(self) -> None:
        """The drafter missed a round's tokens: it starts again with the running sequences, with a gap in its cache."""
        for sequence in self._residents.running.values():
            sequence.followed = False

    @property
    def most_together(self) -> int:
        """Most sequences in one lane's rounds."""
        return -(-self._config.max_num_seqs // self._config.lanes)

    def check(self, request: Request) -> None:
        """Raises ValueError if one of the request's sequences cannot fit in the pool. Thread-safe."""
        self._config.length_limit(request)

    def add(self, request: Request, *, ready: bool = True) -> None:
        """Queues the request's sequences. Raises ValueError as `check` does, or if the id is in use.

        Later outputs wait until output 0 has computed the prompt, then share its blocks. If the request is not `ready`,
        all outputs wait until `release` is called.
        """
        if request.request_id in self._requests:
            raise ValueError(f"request_id {request.request_id!r} is already being served")
        limit, ceiling = self._config.length_limit(request), self._config.draft_ceiling(request)
        sequences = [
            Sequence(
                sequence_id=next(self._sequence_ids),
                request=request,
                output_index=output.index,
                token_ids=[*request.prompt_token_ids, *output.token_ids],
                limit=limit,
                draft_ceiling=ceiling,
            )
            for output in request.outputs
        ]
        self._requests[request.request_id] = sequences
        self._tokens += sum(len(sequence.token_ids) for sequence in sequences)
        for sequence in sequences:
            self._residents.waiting.hold(sequence)
        if ready:
            self.release(request.request_id)
        self._update_gauges()

    def release(self, request_id: str) -> bool:
        """Allows the request's sequences to be admitted. False if it has ended."""
        waiting = self._residents.waiting
        held = waiting.take_held(request_id)
        for sequence in held:
            later = sequence.output_index > 0 and self._shares_prompt(sequence.request)
            (waiting.hold if later else waiting.push)(sequence)
        return bool(held)

    def refuse(self, request_id: str, reason: str) -> list[SequenceChunk]:
        """Fails a request that has not begun; returns its one error chunk, or none if it has ended already."""
        sequences = self._requests.get(request_id, []).copy()
        for sequence in sequences:
            self._end(sequence)
        self._update_gauges()
        return [SequenceChunk(request_id=request_id, error=reason)] if sequences else []

    def _shares_prompt(self, request: Request) -> bool:
        """Whether later outputs should wait for output 0: the prompt fills a block and output 0 exists."""
        fills = self._config.enable_prefix_caching and len(request.prompt_token_ids) >= self._config.block_size
        return fills and request.outputs[0].index == 0

    def cancel(self, request_id: str, index: int | None = None) -> list[SequenceChunk]:
        """Cancels one output, or all of the request's: at once, or if in flight, at the commit of its round.

        Returns a chunk for each output that ended now. Unknown and finished outputs are ignored.
        """
        chunks = []
        for sequence in self._requests.get(request_id, []).copy():
            if index is not None and sequence.output_index != index:
                continue
            if sequence.in_flight:
                sequence.cancelled = True
            else:
                chunks.append(cancelled_chunk(sequence))
                self._end(sequence)
        self._update_gauges()
        return chunks

    def fail(self, reason: str) -> list[SequenceChunk]:
        """Ends every request with an error. Later commits of rounds in flight do nothing."""
        chunks = [SequenceChunk(request_id=request_id, error=reason, engine_lost=True) for request_id in self._requests]
        for sequences in list(self._requests.values()):
            for sequence in sequences.copy():
                self._end(sequence)
        self._in_flight = [None] * self._config.lanes
        self._update_gauges()
        return chunks

    def schedule(self, lane: int) -> Round:
        """The lane's next round. If no sequence is ready, an empty round, which needs no commit.

        Raises RuntimeError if the lane's last round is not committed.
        """
        if not self.idle(lane):
            raise RuntimeError(f"lane {lane} still has round {self._in_flight[lane]} in flight")
        return self._dispatch(lane, self._composer.compose())

    def commit(self, round: Round, verdict: Verdict, time: RoundTiming | None = None) -> list[SequenceChunk]:
        """Applies the verdict to the round's sequences. Returns a chunk for each that gained tokens or ended."""
        if self._in_flight[round.lane] != round.round_id:
            return []
        self._in_flight[round.lane] = None
        self._counters.rounds += 1
        chunks = []
        for outcome in outcomes(round, verdict):
            sequence = self._residents.running[outcome.sequence_id]
            chunk = self._advance(sequence, outcome, time or RoundTiming())
            if chunk is not None:
                chunks.append(chunk)
                if chunk.finish_reason is not None:
                    self._end(sequence)
        self._update_gauges()
        return chunks

    def set_drafts(self, drafts: Mapping[int, list[int]]) -> None:
        """Sets the drafts of each sequence's next round, by sequence id. Sequences that are not ready are skipped."""
        for sequence_id, token_ids in drafts.items():
            sequence = self._residents.ready.get(sequence_id)
            if sequence is not None:
                sequence.drafts = token_ids[: min(sequence.draft_ceiling, sequence.limit - len(sequence.token_ids) - 1)]

    def _dispatch(self, lane: int, builder: RoundBuilder) -> Round:
        if not len(builder):
            return Round(lane=lane)
        round_id = self._in_flight[lane] = next(self._round_ids)
        ends, self._ends = self._ends, []
        for sequence in builder.begins:
            self._counters.prefix_queries += sequence.prompt_tokens
            self._counters.prefix_hits += sequence.cached_tokens
        self._update_gauges()
        return builder.build(
            round_id,
            lane,
            ends,
            several_groups=self._config.data_groups > 1,
            may_skip_drafter=self._config.may_skip_drafter,
        )

    def _advance(self, sequence: Sequence, outcome: SequenceOutcome, time: RoundTiming) -> SequenceChunk | None:
        """Applies the outcome to the sequence. Returns its chunk, or None if there is nothing to send."""
        first = sequence.output_tokens == 0
        sequence.prompt_logprobs += outcome.prompt_logprobs
        sequence.token_ids += outcome.token_ids
        self._tokens += len(outcome.token_ids)
        sequence.drafts = []
        self._residents.finish_round(sequence, min(outcome.computed, len(sequence.token_ids) - outcome.sampled))
        self._count(outcome)
        if sequence.cancelled:
            return cancelled_chunk(sequence)
        if not outcome.token_ids:
            return None
        chunk = gained_chunk(sequence, outcome, first, time)
        sequence.prompt_logprobs = []
        return chunk

    def _count(self, outcome: SequenceOutcome) -> None:
        self._counters.generated_tokens += len(outcome.token_ids)
        if outcome.drafted:
            self._counters.drafts += 1
            self._counters.drafted += outcome.drafted
            self._counters.accepted += outcome.accepted
            for position in range(outcome.drafted):
                self._counters.drafted_per_position[position] += 1
            for position in range(outcome.accepted):
                self._counters.accepted_per_position[position] += 1

    def _update_gauges(self) -> None:
        residents = self._residents
        self._counters.tokens = self._tokens
        self._counters.running = len(residents.running)
        self._counters.waiting = len(residents.waiting) + residents.waiting.held
        blocks = sum(pool.num_blocks for pool in residents.pools)
        self._counters.kv_cache_usage = 1 - sum(pool.free for pool in residents.pools) / blocks

    def _end(self, sequence: Sequence) -> None:
        """Removes the sequence, and its request with the last sequence."""
        self._residents.remove(sequence)
        self._tokens -= len(sequence.token_ids)
        if sequence.begun:
            self._ends.append(sequence.sequence_id)
        live = self._requests[sequence.request.request_id]
        live.remove(sequence)
        if not live:
            del self._requests[sequence.request.request_id]
