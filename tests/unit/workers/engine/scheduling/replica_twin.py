"""A replica without a model, around the real scheduler: every cache slot remembers which tokens it was computed from.

So each row can be checked to read exactly its own sequence's past, and each text can be compared with the one that
straight-line generation gives. Two copies of the model's cache stand for a first and a last stage: one runs a round
when it is scheduled, the other just before its commit.
"""

import copy
from dataclasses import dataclass, field
from random import Random

import numpy as np
from fakes import FixedPlans
from unit.workers.engine.scheduling.toy_model import (
    END_TOKEN,
    VOCABULARY,
    chain,
    length_limit,
    next_token,
    straight_line_text,
)

from outrider.workers.engine.scheduling.blocks import BlockPool
from outrider.workers.engine.scheduling.scheduler import Scheduler, SchedulerConfig
from outrider.workers.types.requests.request import FinishReason, Request, SequenceChunk
from outrider.workers.types.rounds.round import LENGTH, RUNNING, STOPPED, Round, SequenceStart, Verdict, ints
from outrider.workers.types.rounds.sequence import Sequence


@dataclass
class Output:
    """What a client heard of one output."""

    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    chunks: list[SequenceChunk] = field(default_factory=list)


@dataclass
class Known:
    """What the sampler keeps of a sequence."""

    start: SequenceStart
    token_ids: list[int]
    drafts: list[int] = field(default_factory=list)


class ReplicaTwin:
    """Drives a scheduler round by round, in any order of lanes, and checks everything it says."""

    def __init__(self, config: SchedulerConfig, depth: int = 3) -> None:
        self.config = config
        self.planner = FixedPlans(depth)
        self.scheduler = Scheduler(config, self.planner)
        self._residents = self.scheduler._residents
        self.requests: dict[str, Request] = {}
        self.outputs: dict[tuple[str, int], Output] = {}
        self.in_flight: dict[int, Round] = {}
        self.forgotten: list[int] = []
        self._known: dict[int, Known] = {}
        self._first_stage: dict[int, int] = {}  # slot -> mark of the tokens up to its own
        self._last_stage: dict[int, int] = {}
        # By module of the drafter, as many as the scheduler computes tokens again for; and how far each sequence came:
        # the slot of its last pair, the first that is followed, and the modules that took the pair in.
        self._modules: list[dict[int, int]] = [{} for _ in range(config.recomputed_tokens)]
        self._came: dict[int, tuple[int, int, int]] = {}

    def add(self, request: Request) -> None:
        self.scheduler.add(request)
        self.requests[request.request_id] = request
        for output in request.outputs:
            self.outputs[request.request_id, output.index] = Output(token_ids=list(output.token_ids))

    def cancel(self, request_id: str, index: int | None = None) -> None:
        self.hear(self.scheduler.cancel(request_id, index))

    def start(self, lane: int) -> Round:
        """Schedules the lane; the first stage computes at once."""
        round = self.scheduler.schedule(lane)
        if round.sequences:
            assert round.lane == lane
            self.in_flight[lane] = round
            self._check_shape(round)
            self._meet(round)
            self._compute(self._first_stage, round)
        return round

    def finish(self, lane: int, random: Random) -> None:
        """The last stage computes, the sampler judges, the scheduler commits, the drafter drafts."""
        round = self.in_flight.pop(lane)
        self._compute(self._last_stage, round)
        before = {s: list(self._known[s].token_ids) for s in round.sequence_ids.tolist()}
        verdict = self._judge(round)
        self.hear(self.scheduler.commit(round, verdict))
        self.scheduler.set_drafts(self._draft(round, verdict, before, random))

    def run(self, rounds: int, seed: int = 0) -> list[Round]:
        """Rounds on every lane in turn, until there is nothing to do or `rounds` have run."""
        random, done = Random(seed), []
        while self.scheduler.has_work and len(done) < rounds:
            for lane in range(self.config.lanes):
                if lane in self.in_flight:
                    self.finish(lane, random)
                done.append(self.start(lane))
            assert self.in_flight or not self.scheduler.has_work, "there is work, and nothing runs"
        return done

    def hear(self, chunks: list[SequenceChunk]) -> None:
        for chunk in chunks:
            output = self.outputs[chunk.request_id, chunk.index]
            assert output.finish_reason is None, "a chunk after the last"
            assert not (chunk.cached_tokens and output.chunks), "cached_tokens belongs to the first chunk"
            output.chunks.append(chunk)
            output.token_ids += chunk.token_ids
            output.finish_reason = chunk.finish_reason
            assert (chunk.stop_token_id is None) == (chunk.finish_reason is not FinishReason.STOP)

    def check_texts(self) -> None:
        """Every output ended, with straight-line generation's text; a cancelled one with the beginning of it."""
        for (request_id, index), output in self.outputs.items():
            text, reason = straight_line_text(self.requests[request_id], index, self.config.max_model_len)
            if output.finish_reason is FinishReason.CANCELLED:
                assert output.token_ids == text[: len(output.token_ids)]
            else:
                assert (output.token_ids, output.finish_reason) == (text, reason)

    def check_pool(self) -> None:
        """Each pool's counts are those of the blocks that sequences hold; every other block is free, once."""
        running = self._residents.running
        for owner, pool in enumerate(self._residents.pools):
            holders = [0] * pool.num_blocks
            for sequence in running.values():
                assert len(set(sequence.blocks)) == len(sequence.blocks)
                for block in sequence.blocks if sequence.owner == owner else ():
                    holders[block] += 1
            assert [pool.references(block) for block in range(pool.num_blocks)] == holders
            emptied = copy.deepcopy(pool)
            taken = emptied.take(emptied.free)
            assert taken is not None
            assert sorted(taken) == [block for block, held in enumerate(holders) if not held]
            assert not any(emptied.is_cached(block) for block in taken)
        assert all(not s.blocks for s in self.unfinished() if s.sequence_id not in running)
        assert len(running) <= self.config.max_num_seqs

    def unfinished(self) -> list[Sequence]:
        return [sequence for sequences in self.scheduler._requests.values() for sequence in sequences]

    def _check_shape(self, round: Round) -> None:
        assert 0 < round.rows <= self.config.max_num_batched_tokens
        assert (np.diff(round.query_offsets) > 0).all()
        flying = [s for other in self.in_flight.values() for s in other.sequence_ids.tolist()]
        assert len(set(flying)) == len(flying), "a sequence in two rounds"
        slots = np.diff(round.block_offsets) * self.config.block_size
        ends = round.starts + np.diff(round.query_offsets)
        assert (slots >= ends + round.follows + round.draft_steps).all(), "slots not reserved"
        assert (ends + round.follows + round.draft_steps <= self.config.max_model_len).all()
        assert (round.draft_steps[round.sample_counts == 0] == 0).all()

    def _meet(self, round: Round) -> None:
        """The sampler forgets who ended and meets who begins."""
        for sequence_id in round.ends.tolist():
            del self._known[sequence_id]
            self.forgotten.append(sequence_id)
        for start in round.begins:
            assert start.sequence_id not in self._known
            prompt = self._request_of(start.sequence_id).prompt_token_ids
            assert start.prompt_tokens == len(prompt)
            self._known[start.sequence_id] = Known(start, [*prompt, *start.output_token_ids])

    def _request_of(self, sequence_id: int) -> Request:
        return self._live(sequence_id).request

    def _live(self, sequence_id: int) -> Sequence:
        sequence = self.scheduler.live(sequence_id)
        assert sequence is not None
        return sequence

    def _compute(self, cache: dict[int, int], round: Round) -> None:
        """Every row writes its slot, then reads its whole past: both must be of its own sequence's tokens."""
        for index, sequence_id in enumerate(round.sequence_ids.tolist()):
            known, table = self._known[sequence_id], self._table(round, index)
            query = round.token_ids[round.query_offsets[index] : round.query_offsets[index + 1]].tolist()
            start, end = int(round.starts[index]), int(round.starts[index]) + len(query)
            samples = int(round.sample_counts[index])
            tokens = known.token_ids + known.drafts[: max(0, samples - 1)]
            assert query == tokens[start:end]
            assert samples == max(0, end - len(known.token_ids) + 1)
            assert round.next_token_ids[index] == (0 if samples else tokens[end])
            marks = chain(tokens[:end])
            for position in range(start, end):
                if position >= round.write_from[index]:
                    self._check_private(table, position)
                    self._write(cache, table, position, marks)
                self._read(cache, table, range(position + 1), marks)

    def _judge(self, round: Round) -> Verdict:
        emitted, rows, accepted, finish = [], [], [], []
        for index, sequence_id in enumerate(round.sequence_ids.tolist()):
            known, samples = self._known[sequence_id], int(round.sample_counts[index])
            length = int(round.query_offsets[index + 1] - round.query_offsets[index])
            gained, code = self._sample(known, samples) if samples else ([], RUNNING)
            emitted.append(gained)
            rows.append(length - samples + len(gained))
            drafts = known.drafts[: max(0, samples - 1)]
            accepted.append(sum(a == b for a, b in zip(gained, drafts, strict=False)))
            finish.append(code)
            known.token_ids += gained
            known.drafts = []
        return Verdict(
            round_id=round.round_id,
            lane=round.lane,
            token_offsets=ints(np.cumsum([0, *map(len, emitted)])),
            token_ids=ints([token for gained in emitted for token in gained]),
            accepted_rows=ints(rows),
            drafts_accepted=ints(accepted),
            finish=ints(finish),
        )

    def _sample(self, known: Known, samples: int) -> tuple[list[int], int]:
        """The model's own tokens for as long as the drafts before them are its own too."""
        tokens, gained, params = list(known.token_ids), [], known.start.params
        limit = length_limit(known.start.prompt_tokens, params, self.config.max_model_len)
        for draft in [*known.drafts[: samples - 1], None]:
            token = next_token(tokens, known.start.seed, known.start.output_index)
            tokens.append(token)
            gained.append(token)
            if token == END_TOKEN and not params.ignore_eos:
                return gained, STOPPED
            assert len(tokens) <= limit
            if len(tokens) == limit:
                return gained, LENGTH
            if token != draft:
                break
        return gained, RUNNING

    def _draft(
        self, round: Round, verdict: Verdict, before: dict[int, list[int]], random: Random
    ) -> dict[int, list[int]]:
        """Fills slot i+1 from each accepted row i and the token after it, then drafts, three in four drafts right."""
        drafts: dict[int, list[int]] = {}
        for index, sequence_id in enumerate(round.sequence_ids.tolist()):
            if not round.follows[index]:
                assert not round.draft_steps[index]
                continue
            known, table, start = self._known[sequence_id], self._table(round, index), int(round.starts[index])
            marks = chain(known.token_ids)
            for slot in range(start + 1, start + 1 + int(verdict.accepted_rows[index])):
                self._take_in(round, index, slot, marks)
            if verdict.finish[index] == RUNNING and round.draft_steps[index]:
                assert len(known.token_ids) > len(before[sequence_id])
                first = int(round.followed_from[index])
                known.drafts = self._recurse(known, table, first, int(round.draft_steps[index]), random)
                drafts[sequence_id] = list(known.drafts)
        return drafts

    def _take_in(self, round: Round, index: int, slot: int, marks: list[int]) -> None:
        """A module takes a pair in if the one before it took in the pair one slot before: none may lack its slot."""
        sequence_id, table, first = (
            int(round.sequence_ids[index]),
            self._table(round, index),
            int(round.followed_from[index]),
        )
        came = self._came.get(sequence_id)
        reach = came[2] if came is not None and came[:2] == (slot - 1, first) else 0
        for number, cache in enumerate(self._modules):
            if number > reach:
                assert slot < max(int(round.write_from[index]), first + number), "a module lacks the state before"
                continue
            if slot >= round.write_from[index]:
                self._write(cache, table, slot, marks)
            self._read(cache, table, range(first + number, slot + 1), marks)
        self._came[sequence_id] = slot, first, min(reach + 1, len(self._modules))

    def _recurse(self, known: Known, table: list[int], first: int, steps: int, random: Random) -> list[int]:
        tokens = list(known.token_ids)
        for step in range(steps):
            if step:
                marks = chain(tokens)
                self._check_private(table, len(tokens) - 1)
                self._write(self._modules[0], table, len(tokens) - 1, marks)
                self._read(self._modules[0], table, range(first, len(tokens)), marks)
            right = next_token(tokens, known.start.seed, known.start.output_index)
            tokens.append(right if random.random() < 0.75 else random.randrange(VOCABULARY))
        return tokens[len(known.token_ids) :]

    def _table(self, round: Round, index: int) -> list[int]:
        """A sequence's blocks, numbered through all data groups."""
        owner = int(round.owners[index]) if len(round.owners) else 0
        table = round.block_ids[round.block_offsets[index] : round.block_offsets[index + 1]]
        return (table + owner * self.config.num_blocks).tolist()

    def _pool_of(self, block: int) -> tuple[BlockPool, int]:
        """Its group's pool, and its number there."""
        owner, number = divmod(block, self.config.num_blocks)
        return self._residents.pools[owner], number

    def _slot(self, table: list[int], position: int) -> int:
        return table[position // self.config.block_size] * self.config.block_size + position % self.config.block_size

    def _write(self, cache: dict[int, int], table: list[int], position: int, marks: list[int]) -> None:
        block = table[position // self.config.block_size]
        pool, number = self._pool_of(block)
        assert pool.references(number) <= 1, "a shared block written"
        cache[self._slot(table, position)] = marks[position]

    def _check_private(self, table: list[int], position: int) -> None:
        """Nobody can find the block while it is written. (The drafter fills those that a commit just published.)"""
        block = table[position // self.config.block_size]
        pool, number = self._pool_of(block)
        assert not pool.is_cached(number), "a published block written"

    def _read(self, cache: dict[int, int], table: list[int], positions: range, marks: list[int]) -> None:
        for position in positions:
            assert cache.get(self._slot(table, position)) == marks[position], f"position {position} holds other tokens"
