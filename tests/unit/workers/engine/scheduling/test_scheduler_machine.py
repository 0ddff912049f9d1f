"""Any order of arrivals, rounds, verdicts, cancellations and preemptions, in pools that are nearly too small."""

import dataclasses
from random import Random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from unit.workers.engine.scheduling.replica_twin import ReplicaTwin
from unit.workers.engine.scheduling.toy_model import request, straight_line_text

from outrider.workers.engine.scheduling.blocks import blocks_needed
from outrider.workers.engine.scheduling.scheduler import SchedulerConfig
from outrider.workers.types.requests.request import OutputSoFar

_PROMPTS = ([1, 2, 3, 4] * 8, [1, 2, 3, 4] * 2 + [2] * 24, [3] * 32)  # share beginnings


@st.composite
def configs(draw: st.DrawFn) -> SchedulerConfig:
    block_size, max_model_len = draw(st.integers(1, 4)), draw(st.integers(4, 20))
    smallest = blocks_needed(max_model_len, block_size)
    return SchedulerConfig(
        max_num_seqs=draw(st.integers(1, 5)),
        max_num_batched_tokens=draw(st.integers(1, 12)),
        block_size=block_size,
        num_blocks=draw(st.integers(smallest, 2 * smallest + 2)),
        max_model_len=max_model_len,
        lanes=draw(st.integers(1, 3)),
        enable_prefix_caching=draw(st.booleans()),
        speculation=draw(st.sampled_from(["off", "auto", 1, 3])),
        recomputed_tokens=draw(st.sampled_from([1, 1, 2, 3])),
    )


class SchedulerMachine(RuleBasedStateMachine):
    twin: ReplicaTwin

    @initialize(config=configs(), depth=st.integers(0, 4))
    def begin(self, config: SchedulerConfig, depth: int) -> None:
        self.twin = ReplicaTwin(config, depth)

    @rule(
        prompt=st.sampled_from(_PROMPTS),
        length=st.integers(1, 16),
        tail=st.lists(st.integers(1, 4), max_size=2),
        max_tokens=st.none() | st.integers(1, 10),
        n=st.integers(1, 3),
        speculation=st.sampled_from([None, None, "off", 2]),
        seed=st.integers(0, 3),
    )
    def arrive(
        self,
        prompt: list[int],
        length: int,
        tail: list[int],
        max_tokens: int | None,
        n: int,
        speculation: str | int | None,
        seed: int,
    ) -> None:
        tokens = (prompt[:length] + tail)[: self.twin.config.max_model_len - 1]
        name = f"r{len(self.twin.requests)}"
        self.twin.add(request(name, tokens, max_tokens=max_tokens, n=n, speculation=speculation, seed=seed))

    @precondition(lambda self: self.twin.requests)
    @rule(which=st.integers(0, 100), had=st.lists(st.integers(0, 12), min_size=1, max_size=3))
    def take_over(self, which: int, had: list[int]) -> None:
        """A request like an earlier one, of which another replica has said this much, some outputs wholly."""
        earlier = list(self.twin.requests.values())[which % len(self.twin.requests)]
        so_far = []
        for index, count in enumerate(had[: earlier.params.n]):
            text, _ = straight_line_text(earlier, index, self.twin.config.max_model_len)
            if count < len(text):
                so_far.append(OutputSoFar(index=index, token_ids=tuple(text[:count])))
        if so_far:
            name = f"r{len(self.twin.requests)}"
            self.twin.add(dataclasses.replace(earlier, request_id=name, resumed=tuple(so_far)))

    @rule(lane=st.integers(0, 2))
    def start(self, lane: int) -> None:
        lane %= self.twin.config.lanes
        if lane not in self.twin.in_flight:
            self.twin.start(lane)

    @precondition(lambda self: self.twin.in_flight)
    @rule(which=st.integers(0, 2), seed=st.integers(0, 1000))
    def finish(self, which: int, seed: int) -> None:
        lanes = sorted(self.twin.in_flight)
        self.twin.finish(lanes[which % len(lanes)], Random(seed))

    @rule(rounds=st.integers(1, 8), seed=st.integers(0, 1000))
    def several_rounds(self, rounds: int, seed: int) -> None:
        self.twin.run(rounds, seed)

    @precondition(lambda self: self.twin.requests)
    @rule(which=st.integers(0, 100), index=st.none() | st.integers(0, 2))
    def cancel(self, which: int, index: int | None) -> None:
        names = sorted(self.twin.requests)
        self.twin.cancel(names[which % len(names)], index)

    @rule(which=st.integers(0, 20))
    def follow_or_let_go(self, which: int) -> None:
        """The drafter ends following a sequence, or begins again."""
        self.twin.planner.toggle(which)

    @invariant()
    def no_block_is_leaked_shared_wrongly_or_lost(self) -> None:
        if hasattr(self, "twin"):
            self.twin.check_pool()

    @invariant()
    def the_tokens_in_flight_are_those_of_the_unfinished_sequences(self) -> None:
        if hasattr(self, "twin"):
            held = sum(len(sequence.token_ids) for sequence in self.twin.unfinished())
            assert self.twin.scheduler.counters.tokens == held

    def teardown(self) -> None:
        """Everything ends, in a bounded number of rounds, with the right text, and gives back every block."""
        if not hasattr(self, "twin"):
            return
        twin = self.twin
        tokens = twin.config.max_model_len * len(twin.outputs)
        twin.run(rounds=20 + 10 * tokens * twin.config.lanes)
        assert not twin.scheduler.has_work, "work is left"
        assert not twin.in_flight
        twin.check_texts()
        twin.check_pool()
        assert twin.scheduler.counters.kv_cache_usage == 0
        assert (twin.scheduler.counters.running, twin.scheduler.counters.waiting) == (0, 0)


SchedulerMachine.TestCase.settings = settings(
    max_examples=300, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestSchedulerUnderAnyOrderOfEvents = SchedulerMachine.TestCase
