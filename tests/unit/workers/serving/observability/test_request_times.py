import dataclasses

import pytest
from fakes import FakeEngine

from outrider.workers.serving.observability.request_times import Observation, RequestTimes, TimedEngine
from outrider.workers.types.requests.request import FinishReason, Request, SequenceChunk
from outrider.workers.types.requests.sampling_params import SamplingParams


@dataclasses.dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def a_request(request_id: str = "r", n: int = 1) -> Request:
    return Request(request_id=request_id, prompt_token_ids=(1,), params=SamplingParams(n=n, max_tokens=4), seed=0)


def a_chunk(tokens: int, index: int = 0, ends: FinishReason | None = None, error: str = "") -> SequenceChunk:
    return SequenceChunk(request_id="r", index=index, token_ids=(7,) * tokens, finish_reason=ends, error=error)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def times(clock: Clock) -> RequestTimes:
    return RequestTimes(clock)


def at(clock: Clock, times: RequestTimes, now: float, *chunks: SequenceChunk) -> list[Observation]:
    clock.now = now
    times.record(chunks)
    return times.take()


def test_a_request_is_observed_once_when_it_ends(clock: Clock, times: RequestTimes) -> None:
    times.begin(a_request())

    assert at(clock, times, 2.0, a_chunk(1)) == []
    assert at(clock, times, 5.0, a_chunk(3, ends=FinishReason.LENGTH)) == [
        Observation(reason="length", latency_s=5.0, time_to_first_token_s=2.0, time_per_output_token_s=1.0)
    ]
    assert times.take() == []


def test_a_request_of_several_outputs_ends_with_its_last(clock: Clock, times: RequestTimes) -> None:
    times.begin(a_request(n=2))

    assert at(clock, times, 1.0, a_chunk(1, 0), a_chunk(1, 1, FinishReason.LENGTH)) == []
    (observation,) = at(clock, times, 4.0, a_chunk(2, 0, FinishReason.STOP))
    assert (observation.reason, observation.time_per_output_token_s) == ("stop", 1.0)


def test_a_request_that_fails_before_its_first_token_has_only_a_latency(clock: Clock, times: RequestTimes) -> None:
    times.begin(a_request())

    assert at(clock, times, 3.0, a_chunk(0, error="a rank died")) == [Observation(reason="error", latency_s=3.0)]


def test_a_request_says_with_its_first_token_how_long_it_waited_for_its_first_round(
    clock: Clock, times: RequestTimes
) -> None:
    times.begin(a_request(n=2))
    clock.now = 2.0
    times.scheduled(["r"])
    clock.now = 3.0
    times.scheduled(["r"])  # its second output
    times.scheduled(["unknown"])

    said = [times.record([a_chunk(tokens)])[0] for tokens in (0, 1, 1)]

    assert [chunk.queued_s for chunk in said] == [0.0, 2.0, 0.0]
    (observation,) = at(clock, times, 5.0, a_chunk(0, error="a rank died"))
    assert observation.queued_s == 2.0


def test_a_request_that_the_engine_refuses_is_not_observed(clock: Clock, times: RequestTimes) -> None:
    times.begin(a_request())
    times.forget("r")

    assert at(clock, times, 1.0, a_chunk(1, ends=FinishReason.STOP)) == []


def test_a_timed_engine_says_what_the_engine_says_and_times_it() -> None:
    engine, times = FakeEngine(), RequestTimes()
    timed = TimedEngine(engine, times)
    chunks: list[SequenceChunk] = []
    try:
        timed.submit(a_request(), chunks.extend)
        while not any(chunk.finish_reason for chunk in chunks):
            pass
    finally:
        engine.close()

    (observation,) = times.take()
    assert (timed.info, timed.counters) == (engine.info, engine.counters)
    assert sum(len(chunk.token_ids) for chunk in chunks) == 4
    assert observation.reason == "length"
    assert 0 < (observation.time_to_first_token_s or 0) <= observation.latency_s


def test_the_longest_wait_for_a_first_token_is_of_the_oldest_request_that_has_none(
    clock: Clock, times: RequestTimes
) -> None:
    assert times.oldest_wait_s() == 0
    times.begin(a_request())
    clock.now = 2.0
    times.begin(a_request("later"))
    clock.now = 5.0
    assert times.oldest_wait_s() == 5.0

    times.record([a_chunk(1)])

    assert times.oldest_wait_s() == 3.0
