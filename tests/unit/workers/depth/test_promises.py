"""What the depth policy promises, whatever happens: bounded state and work, bounded losses, never off for good.

Rounds of a class have about as many sequences (1, 2, 3-4, 5-8, ...) and the same highest temperature class.
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from statistics import mean, median
from typing import Any

import pytest
from fake_pipeline import VOCAB, CountingDrafter, CountingPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from unit.workers.depth.fake_replica import Machine, Ran, Replica, Texts, objects

from outrider.workers.depth.acceptance import temperature_class
from outrider.workers.depth.budget import MAX_WAIT, SHARE, Budget
from outrider.workers.depth.policy import DepthPolicy
from outrider.workers.depth.round_time import size_class
from outrider.workers.engine.engine import Engine
from outrider.workers.engine.handle import EngineInfo
from outrider.workers.engine.scheduling.scheduler import Scheduler, SchedulerConfig
from outrider.workers.types.requests.request import Request, SequenceChunk
from outrider.workers.types.requests.sampling_params import LOOKUP, SamplingParams
from outrider.workers.types.rounds.drafts import Drafts
from outrider.workers.types.rounds.round import Round

MOST_OBJECTS, OBJECTS_EACH = 6000, 60  # of the policy at all, and for each live sequence
MOST_CALLS, CALLS_EACH = 8000, 600  # of one round: at all, and for each of its sequences
SETTLING = 32  # rounds on top of a wait: until it is noticed, planned and measured
LIES = 20.0  # a lead that says that the draft is accepted
CHEAP_ROWS = Machine(row=0.0002, step=0.0002)
HOPELESS, EASY = Texts(accepted=0.0, lead=LIES), Texts(accepted=0.95)

temperatures = st.sampled_from([0.0, 0.8, 2.0])
texts = st.builds(
    Texts,
    accepted=st.sampled_from([0.0, 0.5, 0.95]),
    lead=st.sampled_from([None, 0.0, LIES]),
    copied=st.sampled_from([0.0, 0.0, 0.8]),
    fails=st.sampled_from([False, False, False, True]),
)
slowness = st.sampled_from([0.3, 1.0, 1.0, 3.0, 20.0])


class Promises(RuleBasedStateMachine):
    """Arrivals, ends, texts, drafters and machines that change, in any order."""

    @initialize(lanes=st.sampled_from([1, 1, 2, 3]), taught=st.booleans(), models=st.sampled_from([("mtp",), ()]))
    def begin(self, lanes: int, taught: bool, models: tuple[str, ...]) -> None:
        self.replica = Replica(DepthPolicy("auto", models=models), lanes, Machine(), Texts(), count_calls=True)
        self.undrafted = defaultdict[int, int](int)  # rounds since one with drafts asked for, by lane
        self.classes = defaultdict[int, set[tuple[int, int]]](set)  # of these
        if taught and models:
            self.replica.teach_times()

    @rule(
        count=st.integers(1, 6),
        prompt=st.sampled_from([1, 7, 60, 400]),
        tokens=st.sampled_from([1, 5, 80, 900]),
        temperature=temperatures,
        wanted=st.sampled_from([{}, {}, {"speculation": "off"}, {"speculation": 2}, {"drafter": LOOKUP}]),
    )
    def ask(self, count: int, wanted: dict[str, Any], **asked: Any) -> None:
        for _ in range(count):
            self.replica.ask(**asked, **wanted)

    @precondition(lambda self: self.replica.live)
    @rule(which=st.integers(0, 100))
    def cancel(self, which: int) -> None:
        self.replica.cancel(self.replica.live[which % len(self.replica.live)])

    @rule(texts=texts)
    def change_texts(self, texts: Texts) -> None:
        self.replica.texts = texts

    @rule(slower=slowness, drafting_slower=slowness)
    def change_machine(self, slower: float, drafting_slower: float) -> None:
        self.replica.machine.slower, self.replica.machine.drafting_slower = slower, drafting_slower

    @rule(keep_times=st.booleans())
    def swap_drafter(self, keep_times: bool) -> None:
        self.replica.policy.begin(keep_times=keep_times)

    @rule(rounds=st.sampled_from([1, 10, 100, 600]))
    def run(self, rounds: int) -> None:
        for _ in range(rounds):
            if not self.replica.scheduler.has_work:
                break
            ran = self.replica.round()
            self._check_work(ran)
            self._check_probes(ran)
        self._check_state()

    def _check_state(self) -> None:
        sequences = self.replica.sequences
        assert self.replica.policy.sequences <= sequences
        assert objects(self.replica.policy) <= MOST_OBJECTS + OBJECTS_EACH * sequences

    def _check_work(self, ran: Ran) -> None:
        assert ran.observed_calls <= MOST_CALLS + CALLS_EACH * ran.round.sequences

    def _check_probes(self, ran: Ran) -> None:
        """Of each class of rounds at most so many pass, so of several as many times that."""
        lane = ran.round.lane
        if not ran.automatic:
            return
        warmest = max(temperature_class(self.replica.params[each].temperature) for each in ran.automatic)
        self.classes[lane].add((size_class(ran.round.sequences), warmest))
        self.undrafted[lane] += 1
        assert self.undrafted[lane] <= (MAX_WAIT + SETTLING) * len(self.classes[lane])
        if ran.drafts or ran.looks_up:
            self.undrafted[lane] = 0
            self.classes[lane].clear()


TestPromises = Promises.TestCase
TestPromises.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)


# Never off for good ---------------------------------------------------------------------------------------------------


def companion(replica: Replica, **params: Any) -> None:
    """One other sequence always lives."""
    if replica.sequences < 2:
        replica.ask(prompt=8, tokens=400, **params)


def turnover(replica: Replica) -> None:
    """A sequence comes, and another ends, in every round."""
    replica.ask(prompt=1, tokens=2)


def prompts(replica: Replica) -> None:
    """A chunk of a prompt is in every round."""
    if replica.sequences < 3:
        replica.ask(prompt=1500, tokens=1)


HAPPENINGS: dict[str, Callable[[Replica], None]] = {
    "nothing": lambda replica: None,
    "one of fixed depth": partial(companion, speculation=2),
    "one without speculation": partial(companion, speculation="off"),
    "one that looks up": partial(companion, drafter=LOOKUP),
    "turnover": turnover,
    "prompts": prompts,
}


def settled(
    texts: Texts, sequences: int = 1, rounds: int = 600, machine: Machine | None = None, **params: Any
) -> Replica:
    """So many sequences that never end, after some rounds."""
    replica = Replica(DepthPolicy("auto"), texts=texts, machine=machine or Machine())
    replica.teach_times()
    for _ in range(sequences):
        replica.ask(tokens=50_000, **params)
    replica.run(rounds)
    return replica


@pytest.mark.parametrize("texts", [HOPELESS, Texts(fails=True), EASY], ids=["hopeless", "failing", "easy"])
@pytest.mark.parametrize("happening", HAPPENINGS)
def test_between_two_rounds_that_ask_a_model_for_drafts_are_at_most_512(happening: str, texts: Texts) -> None:
    """Besides a few in which an end of the wait is noticed, plans are made and rounds without drafts are measured."""
    replica = settled(texts, rounds=0)
    since = longest = 0
    for _ in range(1500):
        HAPPENINGS[happening](replica)
        since = 0 if replica.round().drafts else since + 1
        longest = max(longest, since)

    assert longest <= MAX_WAIT + SETTLING


def rounds_until_resumed(replica: Replica, lead: float | None) -> int:
    """Of text that turns easy until two drafts of a sequence and more are verified."""
    replica.texts = Texts(accepted=0.95, lead=lead)
    ran = replica.run(MAX_WAIT)
    return next((n for n, each in enumerate(ran) if each.round.rows > 2 * each.round.sequences), MAX_WAIT)


@pytest.mark.parametrize("lead", [LIES, 1.0, None])
@pytest.mark.parametrize("sequences", [1, 4])
def test_drafting_resumes_within_512_rounds_of_text_becoming_predictable(sequences: int, lead: float | None) -> None:
    """Hopeless text, of which only probes were drafted for long, turns easy; then most rounds have drafts."""
    for phase in range(0, 64, 16):
        replica = settled(HOPELESS, sequences, 800 + phase, CHEAP_ROWS)

        assert rounds_until_resumed(replica, lead) < MAX_WAIT
        assert sum(each.drafts for each in replica.run(100)) > 80


LEARNS_SLOWLY = pytest.mark.xfail(
    strict=True, reason="a probe verifies one draft of each; deeper ones wait to be believed"
)


@pytest.mark.parametrize("lead", [LIES, None, pytest.param(1.0, marks=LEARNS_SLOWLY)])
def test_drafting_resumes_within_64_rounds_of_text_becoming_predictable(lead: float | None) -> None:
    """`lead`: that of hopeless drafts before, one that tells, and one that was never seen before."""
    waits = [
        rounds_until_resumed(settled(HOPELESS, sequences, 800 + phase, CHEAP_ROWS), lead)
        for sequences in (1, 4)
        for phase in range(0, 64, 8)
    ]

    assert max(waits) <= 64


# While it is disabled -------------------------------------------------------------------------------------------------


class Wrong(CountingDrafter):
    """Its drafts are never accepted, sure as it is."""

    def draft(self, *told: Any) -> dict[int, Drafts]:
        return {each: Drafts([0] * len(own), own.confidences) for each, own in super().draft(*told).items()}


class CountedPipeline(CountingPipeline):
    """With a clock of its own, and a count of calls at each dispatch."""

    def __init__(self, counted: Counter[str]) -> None:
        super().__init__()
        self.now, self._counted, self.calls = 0.0, counted, list[int]()

    def clock(self) -> float:
        return self.now

    def dispatch(self, round: Round) -> None:
        self.calls.append(self._counted["call"] + self._counted["c_call"])
        self.now += 0.01 * (1 + 0.5 * round.rows)
        super().dispatch(round)


def calls_a_round(speculation: str, sequences: int) -> list[int]:
    """Of Python and C functions by an engine whose drafts are never accepted."""
    counted = Counter[str]()
    pipeline = CountedPipeline(counted)
    depth = DepthPolicy(speculation)
    config = SchedulerConfig(
        max_num_seqs=16, max_num_batched_tokens=256, block_size=16, num_blocks=4096, max_model_len=4000,
        speculation=speculation, may_skip_drafter=True,
    )  # fmt: skip
    info = EngineInfo(
        fingerprint="f", max_model_len=4000, vocab_size=VOCAB, dtype="float32", numerics="exact",
        speculation=speculation, has_mtp=True,
    )  # fmt: skip
    engine = Engine(
        info=info, scheduler=Scheduler(config, depth), pipeline=pipeline,
        drafter=Wrong() if speculation == "auto" else None, depth=depth, clock=pipeline.clock,
    )  # fmt: skip
    live = set(range(sequences))

    def deliver(chunks: Sequence[SequenceChunk]) -> None:
        live.difference_update(int(each.request_id) for each in chunks if each.finish_reason is not None)
        if not live:
            engine.stop("done")

    params = SamplingParams(temperature=0.0, max_tokens=1200, ignore_eos=True)
    for n in live.copy():
        engine.submit(Request(request_id=str(n), prompt_token_ids=(1, 2, 3), params=params, seed=0), deliver)
    sys.setprofile(lambda frame, event, argument: counted.update([event]))
    try:
        engine.run()
    finally:
        sys.setprofile(None)
    drafting = [bool(round.draft_steps.any() or round.follows.any()) for round in pipeline.rounds]
    columns = zip(pipeline.calls, pipeline.calls[1:], drafting, drafting[1:], drafting[2:], strict=False)
    return [after - before for before, after, *near in columns if not any(near)]


@pytest.mark.parametrize("sequences", [1, 4])
def test_while_drafting_is_disabled_a_round_costs_what_it_costs_without_speculation(sequences: int) -> None:
    """In calls of functions, within 1 %: the median round, which the policy passes unread. (Each wait ends in one that
    plans, and costs a round's calls once more.)
    """
    auto, off = calls_a_round("auto", sequences)[-500:], calls_a_round("off", sequences)[-500:]

    assert len(auto) == len(off) == 500
    assert median(auto) <= 1.01 * median(off)


# What it may lose -----------------------------------------------------------------------------------------------------


def most_lost(replica: Replica, turns: list[Texts], *, believed: bool) -> tuple[float, float]:
    """In any window of 300 rounds of each text, beyond 1 %, in plain rounds; and what the dearest round took.

    On a machine without noise, from when it is known what rounds take. `believed`: in plain rounds of the policy's own
    estimate, by which a round that it does not look at loses nothing.
    """
    replica.run(50)
    sequences = replica.sequences
    balance = peak = worst = most = 0.0
    for turn in turns:
        replica.texts = turn
        for ran in replica.run(300):
            plain_s = ran.plain_s if believed else replica.machine.round_s(sequences)
            took = ran.took_s / plain_s if plain_s else 1.0
            balance += SHARE + len(ran.verdict.token_ids) / sequences - took
            peak, worst = max(peak, balance), max(worst, took)
            most = max(most, peak - balance)
    return most, worst


@settings(max_examples=15, deadline=None)
@given(
    machine=st.builds(Machine, row=st.sampled_from([0.0002, 0.001, 0.003]), step=st.sampled_from([0.0002, 0.001])),
    sequences=st.sampled_from([1, 2, 4, 8]),
    temperature=temperatures,
    turns=st.lists(texts, min_size=1, max_size=5),
)
def test_in_no_window_of_rounds_more_is_lost_than_the_token_bucket_and_1_percent_as_the_policy_counts(
    machine: Machine, sequences: int, temperature: float, turns: list[Texts]
) -> None:
    """But for the round that empties the bucket, and the next, which verifies what was drafted by then."""
    lost, worst = most_lost(settled(Texts(), sequences, 0, machine, temperature=temperature), turns, believed=True)

    assert lost <= Budget.of(size_class(sequences)).cap + 2 * worst


@pytest.mark.parametrize(("row", "sequences"), [(0.003, 1), (0.003, 4), (0.003, 8)])
def test_in_no_window_of_rounds_more_is_lost_than_the_token_bucket_and_1_percent(row: float, sequences: int) -> None:
    """By what plain rounds really take."""
    replica = settled(Texts(), sequences, 0, Machine(row=row, step=0.0002), temperature=0.0)
    lost, worst = most_lost(replica, [Texts(accepted=0.0)] * 2, believed=False)

    assert lost <= Budget.of(size_class(sequences)).cap + 2 * worst


def test_beside_a_sequence_without_speculation_losses_are_booked_all_the_same() -> None:
    replica = settled(HOPELESS, rounds=0)
    ran = list[Ran]()
    for _ in range(1000):
        companion(replica, speculation="off")
        ran.append(replica.round())

    assert sum(each.drafts for each in ran) < 100


def test_nothing_grows_with_the_rounds_that_have_run() -> None:
    """The policy's objects and the calls of a round with drafts, while sequences come and end and text changes."""
    replica = Replica(DepthPolicy("auto"), count_calls=True)
    replica.teach_times()
    kept, calls = list[int](), list[float]()
    for part, texts in enumerate([EASY, HOPELESS] * 6):
        replica.texts = texts
        ran = list[Ran]()
        for _ in range(400):
            while replica.sequences < 4:
                replica.ask(prompt=10, tokens=150, temperature=0.8)
            ran.append(replica.round())
        kept.append(objects(replica.policy))
        if part % 2 == 0:
            calls.append(mean(each.observed_calls for each in ran if each.drafts))

    assert max(kept[6:]) <= 1.5 * max(kept[:6])
    assert mean(calls[3:]) <= 1.1 * mean(calls[:3])
