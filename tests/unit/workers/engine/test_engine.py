"""The leader's loop, over a pipeline whose target says token + 1."""

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import NoReturn

import pytest
from fake_pipeline import VOCAB, CountingDrafter, CountingPipeline
from torch import Tensor

from outrider.workers.depth.policy import DepthPolicy
from outrider.workers.drafting.drafter import DrafterError
from outrider.workers.engine.engine import Engine, Prepare
from outrider.workers.engine.execution.pipeline import RoundResult
from outrider.workers.engine.handle import EngineInfo
from outrider.workers.engine.progress import Progress
from outrider.workers.engine.scheduling.scheduler import Scheduler, SchedulerConfig
from outrider.workers.types.errors import EngineStoppedError
from outrider.workers.types.requests.request import FinishReason, Request, SequenceChunk
from outrider.workers.types.requests.sampling_params import SamplingParams
from outrider.workers.types.requests.structured_outputs import StructuredOutputsParams
from outrider.workers.types.rounds.drafts import Drafts
from outrider.workers.types.rounds.round import Round, Verdict

INFO = EngineInfo(
    fingerprint="f",
    max_model_len=400,
    vocab_size=VOCAB,
    dtype="float32",
    numerics="exact",
    speculation="auto",
    has_mtp=True,
)
Chunks = queue.SimpleQueue[list[SequenceChunk]]


def _engine(
    pipeline: CountingPipeline,
    drafter: CountingDrafter | None = None,
    speculation: str | int = 3,
    on_begin: Callable[[Sequence[str]], None] = lambda request_ids: None,
    check: Prepare | None = None,
    prepare: Prepare | None = None,
    depth: DepthPolicy | None = None,
    clock: Callable[[], float] = time.perf_counter,
    load_module: Callable[[str], Callable[[], None]] | None = None,
) -> Engine:
    config = SchedulerConfig(
        max_num_seqs=8,
        max_num_batched_tokens=64,
        block_size=4,
        num_blocks=256,
        max_model_len=INFO.max_model_len,
        lanes=pipeline.lanes,
        speculation=speculation,
    )
    depth = depth or DepthPolicy(speculation)
    scheduler = Scheduler(config, depth)
    return Engine(
        info=INFO,
        scheduler=scheduler,
        pipeline=pipeline,
        drafter=drafter,
        depth=depth,
        on_begin=on_begin,
        check=check,
        prepare=prepare,
        load_module=load_module,
        clock=clock,
    )


@contextmanager
def _running(engine: Engine) -> Iterator[Engine]:
    thread = threading.Thread(target=engine.run, daemon=True)
    thread.start()
    yield engine
    engine.stop("test over")
    thread.join(60)
    assert not thread.is_alive()


def _request(name: str, first: int = 5, max_tokens: int = 40) -> Request:
    params = SamplingParams(temperature=0, max_tokens=max_tokens)
    return Request(request_id=name, prompt_token_ids=(1, 2, first), params=params, seed=0)


def _with_grammar(name: str, n: int = 1) -> Request:
    """Its prompt fills a block: later outputs share it."""
    params = SamplingParams(n=n, max_tokens=5, structured_outputs=StructuredOutputsParams(regex=name))
    return Request(request_id=name, prompt_token_ids=(1, 2, 3, 4, 5), params=params, seed=0)


def _collect(chunks: Chunks, requests: int) -> dict[str, list[SequenceChunk]]:
    """Everything until that many requests have ended."""
    heard: dict[str, list[SequenceChunk]] = {}
    while sum(any(c.finish_reason or c.error for c in own) for own in heard.values()) < requests:
        for chunk in chunks.get(timeout=60):
            heard.setdefault(chunk.request_id, []).append(chunk)
    return heard


def _tokens(chunks: list[SequenceChunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.token_ids]


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_requests_from_many_threads_all_get_their_own_text(lanes: int) -> None:
    pipeline, drafter, chunks = CountingPipeline(lanes), CountingDrafter(), Chunks()
    engine = _engine(pipeline, drafter)
    threads = [
        threading.Thread(target=engine.submit, args=(_request(f"r{n}", first=n * 7), chunks.put)) for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with _running(engine):
        heard = _collect(chunks, 20)

    for n in range(20):
        assert _tokens(heard[f"r{n}"]) == [n * 7 + 1 + i for i in range(40)]
    assert pipeline.most_under_way == lanes
    assert engine.counters.accepted > 100
    assert len(drafter.forgotten) >= 20 - 8  # the last rounds' ends travel with rounds to come


def test_it_says_when_a_request_has_its_first_round_and_once() -> None:
    chunks = Chunks()
    happened: list[str] = []

    def deliver(heard: list[SequenceChunk]) -> None:
        happened.extend(f"{chunk.request_id} gained" for chunk in heard)
        chunks.put(heard)

    engine = _engine(
        CountingPipeline(2), on_begin=lambda request_ids: happened.extend(f"{one} began" for one in request_ids)
    )
    for n in range(10):  # more than run at a time
        engine.submit(_request(f"r{n}", max_tokens=5), deliver)
    with _running(engine):
        _collect(chunks, 10)

    for n in range(10):
        own = [what for what in happened if what.startswith(f"r{n} ")]
        assert own[0] == f"r{n} began"
        assert own.count(f"r{n} began") == 1
    assert happened.index("r9 began") > happened.index("r0 gained")


def test_suspects_have_their_first_token_one_after_the_other_and_no_others_wait() -> None:
    chunks, begun = Chunks(), list[str]()
    alone: list[set[str]] = []  # suspects that have begun and have no token, whenever one begins
    having: set[str] = set()

    def begin(request_ids: Sequence[str]) -> None:
        begun.extend(request_ids)
        alone.append({one for one in begun if one.startswith("s")} - having)

    def deliver(heard: list[SequenceChunk]) -> None:
        having.update(chunk.request_id for chunk in heard)
        chunks.put(heard)

    engine = _engine(CountingPipeline(2), on_begin=begin)
    for n in range(4):
        engine.submit(dataclasses.replace(_request(f"s{n}"), suspect=True), deliver)
        engine.submit(_request(f"r{n}"), deliver)
    engine.submit(dataclasses.replace(_with_grammar("s with a grammar"), suspect=True), deliver)
    engine.cancel("s1")  # before its turn
    with _running(engine):
        heard = _collect(chunks, 9)

    assert [_tokens(heard[f"{kind}{n}"]) for kind, n in (("s", 0), ("s", 3), ("r", 0))] == [list(range(6, 46))] * 3
    assert begun[:5] == ["s0", "r0", "r1", "r2", "r3"]
    assert all(len(suspects) <= 1 for suspects in alone)


def test_a_failing_drafter_costs_speed_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    chunks = Chunks()
    with _running(_engine(CountingPipeline(), CountingDrafter(broken=True))) as engine:
        engine.submit(_request("r"), chunks.put)
        heard = _collect(chunks, 1)

    assert _tokens(heard["r"]) == list(range(6, 46))
    assert engine.counters.drafted == 0
    assert engine.counters.speculation.alarms["drafter_failed"] > 10
    (said,) = caplog.messages
    assert said.startswith("drafter CountingDrafter failed in round")


def test_of_several_drafters_that_fail_in_one_round_each_is_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks, drafter = Chunks(), CountingDrafter()
    failures = [DrafterError("mtp", ValueError("no")), DrafterError("lookup", ValueError("neither"))]

    def fail(*seen: object) -> NoReturn:
        raise ExceptionGroup("drafters failed", failures)

    monkeypatch.setattr(drafter, "draft", fail)
    with _running(_engine(CountingPipeline(), drafter)) as engine:
        engine.submit(_request("r"), chunks.put)
        heard = _collect(chunks, 1)

    assert _tokens(heard["r"]) == list(range(6, 46))
    assert [said.split()[1] for said in caplog.messages] == ["mtp", "lookup"]


def test_of_another_module_nothing_is_known_that_was_learned_of_the_old_one() -> None:
    chunks, placed = Chunks(), list[str]()
    engine = _engine(
        CountingPipeline(), CountingDrafter(broken=True), load_module=lambda path: lambda: placed.append(path)
    )
    with _running(engine):
        engine.submit(_request("r"), chunks.put)
        _collect(chunks, 1)
        before = engine.counters.speculation.alarms["drafter_failed"]
        engine.swap_drafter("other")

    assert placed == ["other"]
    assert before > 10
    assert engine.counters.speculation.alarms["drafter_failed"] == 0


def test_a_lost_rank_ends_every_request_with_one_error_that_names_it() -> None:
    engine, chunks = _engine(CountingPipeline(lanes=2, lost_in_round=5)), Chunks()
    for n in range(6):
        engine.submit(_request(f"r{n}"), chunks.put)

    with pytest.raises(EngineStoppedError, match="rank 1"):
        engine.run()

    heard = _collect(chunks, 6)
    assert all(own[-1].error.startswith("rank 1 (stage 1") for own in heard.values())
    assert all(not chunk.error for own in heard.values() for chunk in own[:-1])
    with pytest.raises(EngineStoppedError, match="rank 1"):
        engine.submit(_request("late"), chunks.put)


def test_a_defect_in_a_round_is_told_to_every_client_and_not_hung_on() -> None:
    engine, chunks = _engine(CountingPipeline(lost_in_round=3, error=IndexError("out of range"))), Chunks()
    engine.submit(_request("r"), chunks.put)

    with pytest.raises(IndexError):
        engine.run()

    assert _collect(chunks, 1)["r"][-1].error == "the engine failed: IndexError: out of range"
    with pytest.raises(EngineStoppedError, match="IndexError"):
        engine.submit(_request("late"), chunks.put)


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_stopping_collects_the_rounds_under_way_before_the_stages_are_told(lanes: int) -> None:
    pipeline, chunks = CountingPipeline(lanes), Chunks()
    with _running(_engine(pipeline)) as engine:
        for n in range(6):
            engine.submit(_request(f"r{n}", max_tokens=390), chunks.put)
        _wait_until(lambda: len(pipeline.rounds) > 10)

    assert pipeline.closed  # and its own assertion held
    assert len(_collect(chunks, 6)) == 6


def test_a_cancelled_request_ends_within_a_round_and_frees_its_blocks() -> None:
    engine, chunks = _engine(CountingPipeline(lanes=2)), Chunks()

    def hear_and_cancel(own: list[SequenceChunk]) -> None:  # in the engine's thread: no round in between
        chunks.put(own)
        engine.cancel("r")
        engine.cancel("never heard of")

    with _running(engine):
        engine.submit(_request("r", max_tokens=390), hear_and_cancel)
        heard = _collect(chunks, 1)
        _wait_until(lambda: engine.counters.running == 0)

    assert heard["r"][-1].finish_reason is FinishReason.CANCELLED
    assert len(_tokens(heard["r"])) <= 2
    assert engine.counters.kv_cache_usage == 0


def test_a_slow_grammar_keeps_its_own_request_waiting_and_nobody_else() -> None:
    compiles: dict[str | None, Future[None]] = {"slow": Future(), "soon": Future()}
    pipeline, chunks = CountingPipeline(), Chunks()
    with _running(_engine(pipeline, prepare=lambda constraint: compiles[constraint.regex])) as engine:
        engine.submit(_with_grammar("slow", n=3), chunks.put)
        engine.submit(_request("plain"), chunks.put)
        engine.submit(_with_grammar("soon"), chunks.put)
        assert _tokens(_collect(chunks, 1)["plain"]) == list(range(6, 46))
        compiles["soon"].set_result(None)
        assert _tokens(_collect(chunks, 1)["soon"]) == list(range(6, 11))
        assert engine.counters.waiting == 3

        compiles["slow"].set_result(None)
        heard: list[SequenceChunk] = []
        while sum(chunk.finish_reason is not None for chunk in heard) < 3:
            heard += chunks.get(timeout=60)

    assert {chunk.request_id for chunk in heard} == {"slow"}
    for index in range(3):
        assert _tokens([chunk for chunk in heard if chunk.index == index]) == list(range(6, 11))
    assert [one.regex for one in pipeline.prepared] == ["slow", "soon"]


def test_an_idle_engine_has_the_sampler_compile_a_grammar_before_any_round_needs_it() -> None:
    compiling: Future[None] = Future()
    pipeline, chunks = CountingPipeline(), Chunks()
    with _running(_engine(pipeline, prepare=lambda constraint: compiling)) as engine:
        engine.submit(_with_grammar("only"), chunks.put)
        _wait_until(lambda: bool(pipeline.prepared))
        assert pipeline.rounds == []

        compiling.set_result(None)
        assert _tokens(_collect(chunks, 1)["only"]) == list(range(6, 11))

    assert [one.regex for one in pipeline.prepared] == ["only"]


def test_a_grammar_that_cannot_be_compiled_is_an_error_of_its_request_alone() -> None:
    compiling: Future[None] = Future()
    chunks = Chunks()
    with _running(_engine(CountingPipeline(), prepare=lambda constraint: compiling)) as engine:
        engine.submit(_with_grammar("broken", n=2), chunks.put)
        compiling.set_exception(ValueError("no such rule"))
        (chunk,) = _collect(chunks, 1)["broken"]
        engine.submit(_request("plain"), chunks.put)
        assert len(_tokens(_collect(chunks, 1)["plain"])) == 40

    assert (chunk.error, chunk.engine_lost) == ("structured_outputs cannot be followed: no such rule", False)
    assert engine.counters.waiting == 0


def test_no_rank_compiles_a_grammar_before_its_check_has_passed() -> None:
    checks: dict[str | None, Future[None]] = {"good": Future(), "bad": Future()}
    prepared: list[str | None] = []

    def prepare(constraint: StructuredOutputsParams) -> Future[None]:
        prepared.append(constraint.regex)
        done = Future[None]()
        done.set_result(None)
        return done

    pipeline, chunks = CountingPipeline(), Chunks()
    engine = _engine(pipeline, check=lambda constraint: checks[constraint.regex], prepare=prepare)
    with _running(engine):
        engine.submit(_with_grammar("bad", n=2), chunks.put)
        engine.submit(_with_grammar("good"), chunks.put)
        engine.submit(_request("plain"), chunks.put)
        assert len(_tokens(_collect(chunks, 1)["plain"])) == 40
        assert (prepared, pipeline.prepared) == ([], [])

        checks["bad"].set_exception(ValueError("structured_outputs cannot be followed: it is nested too deeply"))
        (refused,) = _collect(chunks, 1)["bad"]
        checks["good"].set_result(None)
        assert len(_tokens(_collect(chunks, 1)["good"])) == 5

    assert (refused.error, refused.engine_lost) == (str(checks["bad"].exception()), False)
    assert prepared == [one.regex for one in pipeline.prepared] == ["good"]


def test_a_cancelled_request_cancels_the_check_of_its_grammar() -> None:
    check, chunks = Future[None](), Chunks()
    engine = _engine(CountingPipeline(), check=lambda constraint: check, prepare=lambda constraint: Future())
    with _running(engine):
        engine.submit(_with_grammar("first"), chunks.put)
        engine.cancel("first")
        (cancelled,) = _collect(chunks, 1)["first"]

    assert cancelled.finish_reason is FinishReason.CANCELLED
    assert check.cancelled()


def test_who_waits_for_a_grammar_can_be_cancelled_and_hears_of_the_end() -> None:
    chunks = Chunks()
    engine = _engine(CountingPipeline(), prepare=lambda constraint: Future())
    with _running(engine):
        engine.submit(_with_grammar("first"), chunks.put)
        engine.submit(_with_grammar("second"), chunks.put)
        engine.cancel("first")
        (cancelled,) = _collect(chunks, 1)["first"]
        assert _falls_asleep(engine), "it does not sleep while it waits"

    (ended,) = _collect(chunks, 1)["second"]
    assert cancelled.finish_reason is FinishReason.CANCELLED
    assert (ended.error, ended.engine_lost) == ("test over", True)


def test_a_stopped_engine_ends_what_is_unfinished_with_the_reason() -> None:
    engine, chunks = _engine(CountingPipeline()), Chunks()
    engine.submit(_request("r"), chunks.put)
    engine.stop("drained")
    engine.run()

    assert _collect(chunks, 1)["r"][-1].error == "drained"


def test_an_idle_engine_sleeps() -> None:
    pipeline, chunks = CountingPipeline(), Chunks()
    with _running(_engine(pipeline)) as engine:
        engine.submit(_request("r"), chunks.put)
        _collect(chunks, 1)

        assert _falls_asleep(engine)


def test_a_warm_up_leaves_no_trace() -> None:
    engine = _engine(CountingPipeline(), CountingDrafter())

    engine.warm_up()

    assert engine.counters.rounds == 0
    assert engine.counters.running == 0
    assert engine.times.rounds == 0


class _TimedPipeline(CountingPipeline):
    """With a clock of its own: a round takes 10 ms."""

    now = 0.0

    def clock(self) -> float:
        return self.now

    def collect(self) -> RoundResult:
        self.now += 0.01
        return super().collect()


class _SlowDrafter(CountingDrafter):
    """A draft step takes five times as long as a round."""

    def __init__(self, pipeline: _TimedPipeline) -> None:
        super().__init__()
        self._pipeline = pipeline

    def draft(self, round: Round, verdict: Verdict, hidden: Tensor) -> dict[int, Drafts]:
        self._pipeline.now += 0.0001 + 0.05 * int(round.draft_steps.max())
        return super().draft(round, verdict, hidden)


@pytest.mark.parametrize("lanes", [1, 2])
def test_drafts_that_cost_too_much_are_hardly_tried_with_or_without_a_warm_up(lanes: int) -> None:
    drafted = {}
    for warmed in (False, True):
        pipeline, chunks = _TimedPipeline(lanes), Chunks()
        engine = _engine(pipeline, _SlowDrafter(pipeline), "auto", clock=pipeline.clock)
        if warmed:
            engine.warm_up()
        with _running(engine):
            engine.submit(_request("r", max_tokens=1000), chunks.put)
            _collect(chunks, 1)
        drafted[warmed] = engine.counters.drafted
    assert max(drafted.values()) <= 0.05 * 1000


def test_a_warm_up_measures_nothing_where_depth_is_fixed() -> None:
    rounds = {}
    for speculation in ("auto", 3):
        pipeline = CountingPipeline()
        _engine(pipeline, CountingDrafter(), speculation).warm_up()
        rounds[speculation] = len(pipeline.rounds)

    assert rounds[3] < rounds["auto"] / 4


@pytest.mark.parametrize("token", [1.0, True, -1, VOCAB, "1"])
def test_a_token_id_that_is_none_is_refused_with_its_place(token: object) -> None:
    with pytest.raises(ValueError, match=r"prompt\[1\] must be an integer in \[0, 999\]"):
        INFO.check((1, token), SamplingParams(), has_tokenizer=True)  # type: ignore[arg-type]  # what users send


def test_without_mtp_weights_auto_means_no_drafts_and_a_depth_is_refused() -> None:
    info = dataclasses.replace(INFO, has_mtp=False, speculation="off")

    info.check((1,), SamplingParams(speculation="auto"), has_tokenizer=True)
    with pytest.raises(ValueError, match="no MTP weights"):
        info.check((1,), SamplingParams(speculation=2), has_tokenizer=True)


def _falls_asleep(engine: Engine, within_s: float = 30.0) -> bool:
    """Whether there comes a while in which it does nothing at all."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        parts = dict(engine.times.by_part)
        time.sleep(0.2)
        if engine.times.by_part == parts:
            return True
    return False


def _wait_until(condition: object, timeout_s: float = 60.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.005)


class _SlowDecisions(DepthPolicy):
    """Takes 5 seconds of its own clock to learn from a round, and keeps what it heard that rounds took."""

    def __init__(self) -> None:
        super().__init__(3)
        self.now = 0.0
        self.heard_s: list[float] = []

    def observe(
        self, round: Round, verdict: Verdict, round_s: float, draft_s: float, drafts: Mapping[int, Drafts]
    ) -> dict[int, list[int]]:
        self.heard_s.append(round_s + draft_s)
        self.now += 5.0
        return super().observe(round, verdict, 1.0, 1.0, drafts)


@pytest.mark.parametrize(("lanes", "charged_s"), [(1, 5.0), (2, 0.0)])
def test_a_round_is_charged_with_the_decisions_before_it_but_not_after_idleness_or_beside_others(
    lanes: int, charged_s: float
) -> None:
    depth, chunks = _SlowDecisions(), Chunks()
    engine = _engine(CountingPipeline(lanes), CountingDrafter(), depth=depth, clock=lambda: depth.now)
    with _running(engine):
        for name in ("first", "second"):
            engine.submit(_request(name), chunks.put)
            _collect(chunks, 1)

    assert set(depth.heard_s) == {0.0, charged_s}
    assert not charged_s or depth.heard_s.count(0.0) == 2, "the first round of each"


class _HangingPipeline(CountingPipeline):
    """Its second round does not end before `go_on` is set, as a kernel that hangs."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def collect(self) -> RoundResult:
        if len(self.rounds) == 2:
            assert self.go_on.wait(60)
        return super().collect()


def test_an_engine_whose_round_hangs_says_so_and_an_idle_one_does_not() -> None:
    pipeline, chunks, now = _HangingPipeline(), Chunks(), [0.0]
    engine = _engine(pipeline)
    engine.progress = Progress(lambda: now[0])
    with _running(engine):
        engine.submit(_request("r", max_tokens=5), chunks.put)
        _wait_until(lambda: len(pipeline.rounds) == 2)
        now[0] += 60
        assert "in round 1" in engine.progress.stall()

        pipeline.go_on.set()
        _collect(chunks, 1)
        assert _falls_asleep(engine)
        now[0] += 60
        assert engine.progress.stall() == ""
