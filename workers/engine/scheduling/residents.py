"""The sequences that hold cache blocks: admission, reservation, preemption and prefix caching.

A sequence is waiting, ready (admitted, between rounds) or in flight. Only the one sequence that holds a block writes
it. A block is released only while its sequence is not in flight, so no stage can still be writing it.
"""

from collections.abc import Collection

from outrider.workers.engine.scheduling.blocks import BlockPool, blocks_needed, extend_keys, salted
from outrider.workers.engine.scheduling.limits import SchedulerConfig
from outrider.workers.engine.scheduling.waiting import WaitingQueue
from outrider.workers.types.rounds.draft_plan import NO_DRAFTS, Planner
from outrider.workers.types.rounds.sequence import Sequence

# Blocks also hold the drafter's entries, so blocks with and without these have different keys.
_SALTS = (b"model", b"model and drafter")


class Residents:
    """The sequences by state, and a block pool for each data group."""

    def __init__(self, config: SchedulerConfig, planner: Planner) -> None:
        self._config, self._planner = config, planner
        self._size = config.block_size
        self.pools = [BlockPool(config.num_blocks) for _ in range(config.data_groups)]  # by data group
        self.waiting = WaitingQueue()
        self.running: dict[int, Sequence] = {}  # ready or in flight
        self.ready: dict[int, Sequence] = {}  # longest waiting since its last round first

    @property
    def may_admit(self) -> bool:
        """Whether a sequence is waiting and fewer than max_num_seqs run. Blocks may still be missing."""
        return len(self.waiting) > 0 and len(self.running) < self._config.max_num_seqs

    def admit_next(self) -> Sequence | None:
        """Makes the first waiting sequence ready, with its blocks from the prefix cache.

        None if too few blocks are free: it needs its remaining blocks, plus one for each running sequence, so that it
        is not preempted at once.
        """
        if not self.may_admit:
            return None
        sequence = self.waiting.head
        self._salt(sequence)
        place = self._place_for(sequence)
        if place is None:
            return None
        self.waiting.pop()
        sequence.owner, found = place
        self.pools[sequence.owner].share(found)
        sequence.blocks.extend(found)
        sequence.published = len(found)
        sequence.computed = len(found) * self._size
        # The last cached tokens are computed again (not written), since hidden states are not cached: the model needs
        # one, the drafter one for each MTP module.
        again = self._config.recomputed_tokens if sequence.salted else 1
        sequence.start = max(0, sequence.computed - again)
        if not sequence.begun:
            sequence.cached_tokens = min(sequence.computed, sequence.prompt_tokens)
        self.running[sequence.sequence_id] = self.ready[sequence.sequence_id] = sequence
        return sequence

    def reserve(self, sequence: Sequence, wanted: int, least: int) -> int:
        """Gives the ready sequence blocks for slots 0 .. granted - 1; granted is in `least` .. `wanted`, or 0.

        Beyond `least` it leaves one free block for each other ready sequence. To reach `least` it preempts younger
        ready sequences, youngest first. 0: that did not free enough.
        """
        held = len(sequence.blocks)
        if wanted <= held * self._size:
            return wanted
        missing = blocks_needed(least, self._size) - held
        pool = self.pools[sequence.owner]
        while missing > pool.free:
            youngest = max(self._ready_beside(sequence))
            if youngest == sequence.sequence_id:
                return 0
            self._preempt(self.ready[youngest])
        spare = pool.free - (len(self._ready_beside(sequence)) - 1)
        extra = min(blocks_needed(wanted, self._size) - held, max(missing, spare))
        sequence.blocks.extend(pool.take(extra) or ())
        return min(wanted, (held + extra) * self._size)

    def start_round(self, sequence: Sequence) -> None:
        """Moves the sequence from ready to in flight."""
        del self.ready[sequence.sequence_id]
        sequence.in_flight = True

    def finish_round(self, sequence: Sequence, computed: int) -> None:
        """Moves the sequence back to ready; the cache entries of its first `computed` tokens are now valid."""
        sequence.in_flight = False
        self.ready[sequence.sequence_id] = sequence
        sequence.start, sequence.computed = computed, max(computed, sequence.computed)
        if computed // self._size > sequence.published and self._config.enable_prefix_caching and sequence.publishes:
            self._publish(sequence, computed // self._size)
        if sequence.output_index == 0 and computed >= sequence.prompt_tokens:
            self.waiting.release_held(sequence.request.request_id)

    def remove(self, sequence: Sequence) -> None:
        """Removes the sequence in any state and releases its blocks, and outputs that were held for its prompt."""
        if self.running.pop(sequence.sequence_id, None) is None:
            self.waiting.discard(sequence)
        self._planner.forget(sequence.sequence_id)
        self.ready.pop(sequence.sequence_id, None)
        self._give_back(sequence)
        if sequence.output_index == 0:
            self.waiting.release_held(sequence.request.request_id)

    def _ready_beside(self, sequence: Sequence) -> Collection[int]:
        """Ids of the ready sequences in the same pool, including this one."""
        if len(self.pools) == 1:
            return self.ready
        return [s for s, other in self.ready.items() if other.owner == sequence.owner]

    def _place_for(self, sequence: Sequence) -> tuple[int, list[int]] | None:
        """The data group with room and the fewest tokens to compute, and its cached blocks of the sequence."""
        loads, running = self._loads_by_group()
        places: list[tuple[int, int, list[int]]] = []
        for owner, pool in enumerate(self.pools):
            found = self._cached_prefix(sequence, pool)
            missing = blocks_needed(len(sequence.token_ids) + 1, self._size) - len(found)
            if missing + running[owner] <= pool.free - pool.free_among(found):
                load = loads[owner] + len(sequence.token_ids) - len(found) * self._size
                places.append((load, owner, found))
        return min(places, key=lambda place: place[:2])[1:] if places else None

    def _loads_by_group(self) -> tuple[list[int], list[int]]:
        """Tokens and running sequences by data group. With one group, tokens are not counted: there is no choice."""
        if len(self.pools) == 1:
            return [0], [len(self.running)]
        loads, running = [0] * len(self.pools), [0] * len(self.pools)
        for other in self.running.values():
            loads[other.owner] += len(other.token_ids)
            running[other.owner] += 1
        return loads, running

    def _preempt(self, sequence: Sequence) -> None:
        """Returns the sequence to its place in the queue. Its tokens are computed again after readmission."""
        del self.running[sequence.sequence_id], self.ready[sequence.sequence_id]
        self._give_back(sequence)
        sequence.start = sequence.computed = 0
        self.waiting.push(sequence)

    def _give_back(self, sequence: Sequence) -> None:
        self.pools[sequence.owner].release(sequence.blocks)
        del sequence.blocks[:]

    def _salt(self, sequence: Sequence) -> None:
        """Decides whether the drafter follows the sequence from its first row on, and sets the kind of its keys."""
        if sequence.draft_ceiling:
            live = min(len(self.running) + len(self.waiting), self._config.max_num_seqs)
            self._planner.admit(sequence, together=-(-live // self._config.lanes))
        followed = self._planner.plans.get(sequence.sequence_id, NO_DRAFTS).follows
        if followed != sequence.salted:
            sequence.block_keys.clear()
        sequence.salted = sequence.followed = followed
        sequence.followed_from, sequence.publishes = 1, True

    def _cached_prefix(self, sequence: Sequence, pool: BlockPool) -> list[int]:
        if not self._config.enable_prefix_caching or sequence.scores_prompt:  # cached tokens get no logits
            return []
        self._extend_keys(sequence, len(sequence.token_ids) // self._size)
        found = pool.find(sequence.block_keys)
        if sequence.salted or not sequence.draft_ceiling:
            return found
        followed = list[bytes]()  # blocks that also have the drafter's entries can be used too
        extend_keys(followed, sequence.token_ids, len(sequence.block_keys), self._size, _salt_of(sequence, True))
        return max(found, pool.find(followed), key=len)

    def _publish(self, sequence: Sequence, blocks: int) -> None:
        self._extend_keys(sequence, blocks)
        for index in range(sequence.published, blocks):
            self.pools[sequence.owner].publish(sequence.blocks[index], sequence.block_keys[index])
        sequence.published = blocks

    def _extend_keys(self, sequence: Sequence, blocks: int) -> None:
        extend_keys(sequence.block_keys, sequence.token_ids, blocks, self._size, _salt_of(sequence, sequence.salted))


def _salt_of(sequence: Sequence, followed: bool) -> bytes:
    return salted(_SALTS[followed], sequence.request.cache_salt)
