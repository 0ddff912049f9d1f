"""From requests to rounds, and from verdicts to chunks. A state machine: knows no tensors, clocks or threads.

`commit` lets other sequences read the blocks that its round filled. So the drafter must have followed the round's
accepted rows, of sequences that ended too, before the next round runs.
"""

from collections.abc import Mapping
from itertools import count

from outrider.workers.engine.composer import RoundComposer
from outrider.workers.engine.limits import SchedulerConfig
from outrider.workers.engine.outcome import SequenceOutcome, cancelled_chunk, gained_chunk, outcomes
from outrider.workers.engine.residents import Residents
from outrider.workers.engine.round_builder import RoundBuilder
from outrider.workers.types.counters import EngineCounters
from outrider.workers.types.draft_plan import Planner, Undrafted
from outrider.workers.types.request import Request, SequenceChunk
from outrider.workers.types.round import Round, Verdict
from outrider.workers.types.round_time import RoundTiming
from outrider.workers.types.sequence import Sequence

__all__ = ["Scheduler", "SchedulerConfig"]


class Scheduler:
    """Knows of drafts only what the `planner`'s plans say; the limits and the free blocks may allow fewer."""

    def __init__(self, config: SchedulerConfig, planner: Planner | None = None) -> None:
        planner = Undrafted() if planner is None else planner
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
        """Whether a sequence runs, or may begin: not if all that there are wait for `release`."""
        return bool(self._residents.running) or len(self._residents.waiting) > 0

    def idle(self, lane: int) -> bool:
        """Whether no round of the lane waits for its commit."""
        return self._in_flight[lane] is None

    @property
    def counters(self) -> EngineCounters:
        """The live counters. Written by the scheduler's thread only."""
        return self._counters

    def reset_counters(self) -> None:
        """Starts a new count; the old object keeps the old one."""
        self._counters = EngineCounters()
        self._update_gauges()

    def live(self, sequence_id: int) -> Sequence | None:
        """The sequence of that id, if it runs: not to be changed by who asks. For the engine's own thread."""
        return self._residents.running.get(sequence_id)

    def unfollow(self) -> None:
        """The drafter lost what it was to take in: it begins anew with what runs, and its cache has a gap."""
        for sequence in self._residents.running.values():
            sequence.followed = False

    @property
    def most_together(self) -> int:
        """How many sequences may share a lane's rounds."""
        return -(-self._config.max_num_seqs // self._config.lanes)

    def check(self, request: Request) -> None:
        """ValueError if the pool could never hold one of the request's sequences. Safe from any thread."""
        self._config.length_limit(request)

    def add(self, request: Request, *, ready: bool = True) -> None:
        """Queues the request's sequences. ValueError as `check`, or if its id is live.

        Later outputs wait until output 0 has computed the prompt, whose blocks they then share; all of them, where the
        request is not `ready`, until its `release`.
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
        """The request's sequences may begin. False if it has ended, and nothing happens."""
        waiting = self._residents.waiting
        held = waiting.take_held(request_id)
        for sequence in held:
            later = sequence.output_index > 0 and self._shares_prompt(sequence.request)
            (waiting.hold if later else waiting.push)(sequence)
        return bool(held)

    def refuse(self, request_id: str, reason: str) -> list[SequenceChunk]:
        """Ends a request that has not begun with an error, its one chunk. If it has ended, nothing happens."""
        sequences = self._requests.get(request_id, []).copy()
        for sequence in sequences:
            self._end(sequence)
        self._update_gauges()
        return [SequenceChunk(request_id=request_id, error=reason)] if sequences else []

    def _shares_prompt(self, request: Request) -> bool:
        """Whether the prompt fills a block, and output 0 is there to compute it first."""
        fills = self._config.enable_prefix_caching and len(request.prompt_token_ids) >= self._config.block_size
        return fills and request.outputs[0].index == 0

    def cancel(self, request_id: str, index: int | None = None) -> list[SequenceChunk]:
        """Ends one output, or all of the request's: at once, or, where in flight, at the commit of its round.

        A chunk for each one ended now. What is unknown or has finished is passed over.
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
        """Ends every request with an error. Rounds in flight are forgotten: their commits do nothing."""
        chunks = [SequenceChunk(request_id=request_id, error=reason, engine_lost=True) for request_id in self._requests]
        for sequences in list(self._requests.values()):
            for sequence in sequences.copy():
                self._end(sequence)
        self._in_flight = [None] * self._config.lanes
        self._update_gauges()
        return chunks

    def schedule(self, lane: int) -> Round:
        """The lane's next round; one without sequences if none is ready, which says nothing and needs no commit.

        RuntimeError if the lane's last round is not committed.
        """
        if not self.idle(lane):
            raise RuntimeError(f"lane {lane} still has round {self._in_flight[lane]} in flight")
        return self._dispatch(lane, self._composer.compose())

    def commit(self, round: Round, verdict: Verdict, time: RoundTiming | None = None) -> list[SequenceChunk]:
        """Takes in what the sampler said of the round: a chunk for each sequence that gained tokens or ended."""
        if self._in_flight[round.lane] != round.round_id:
            return []
        self._in_flight[round.lane] = None
        self._counters.rounds += 1
        chunks = []
        for outcome in outcomes(round, verdict):
            sequence = self._residents.running[outcome.sequence_id]
            chunk = self._take_in(sequence, outcome, time or RoundTiming())
            if chunk is not None:
                chunks.append(chunk)
                if chunk.finish_reason is not None:
                    self._end(sequence)
        self._update_gauges()
        return chunks

    def set_drafts(self, drafts: Mapping[int, list[int]]) -> None:
        """Drafts by sequence id, for each one's next round. Sequences that are not ready are passed over."""
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

    def _take_in(self, sequence: Sequence, outcome: SequenceOutcome, time: RoundTiming) -> SequenceChunk | None:
        """Advances the sequence by its outcome; the chunk says what was gained, or None for nothing."""
        first = sequence.output_tokens == 0
        sequence.prompt_logprobs += outcome.prompt_logprobs
        sequence.token_ids += outcome.token_ids
        self._tokens += len(outcome.token_ids)
        sequence.drafts = []
        self._residents.land(sequence, min(outcome.computed, len(sequence.token_ids) - outcome.sampled))
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
        """Forgets the sequence, and its request with the last of them."""
        self._residents.remove(sequence)
        self._tokens -= len(sequence.token_ids)
        if sequence.begun:
            self._ends.append(sequence.sequence_id)
        live = self._requests[sequence.request.request_id]
        live.remove(sequence)
        if not live:
            del self._requests[sequence.request.request_id]
