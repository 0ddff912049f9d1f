"""The leader's gRPC service and both of its clients, over loopback, on a fake engine."""

import asyncio
import queue
from collections.abc import Iterator

import pytest
from fakes import FakeEngine

from outrider.workers.serving.rpc.leader_client import LeaderClient, RemoteEngine
from outrider.workers.serving.rpc.service import EngineServer
from outrider.workers.types.errors import EngineStoppedError, OutriderError
from outrider.workers.types.requests.request import FinishReason, Request, SequenceChunk
from outrider.workers.types.requests.sampling_params import SamplingParams

Chunks = queue.SimpleQueue[list[SequenceChunk]]


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    engine = FakeEngine(max_model_len=100_000)
    yield engine
    engine.close()


@pytest.fixture
def leader(engine: FakeEngine) -> Iterator[str]:
    server = EngineServer(engine)
    yield f"127.0.0.1:{server.start()}"
    server.stop()


@pytest.fixture
def remote(leader: str) -> Iterator[RemoteEngine]:
    remote = RemoteEngine.connect(leader)
    yield remote
    remote.close()


def _request(request_id: str = "r", prompt: int = 5, **params: object) -> Request:
    return Request(request_id=request_id, prompt_token_ids=(prompt,), params=SamplingParams(**params), seed=-(2**63))


def _until_end(chunks: Chunks, ends: int = 1) -> list[SequenceChunk]:
    got: list[SequenceChunk] = []
    while sum(chunk.finish_reason is not None or bool(chunk.error) for chunk in got) < ends:
        got += chunks.get(timeout=60)
    return got


def test_a_request_arrives_as_it_was_sent_and_its_chunks_as_they_were_made(
    engine: FakeEngine, remote: RemoteEngine
) -> None:
    chunks: Chunks = queue.SimpleQueue()
    request = _request(max_tokens=3, stop="x", logprobs=2, top_p=0.25, stop_token_ids=[7])

    remote.submit(request, chunks.put)
    got = _until_end(chunks)

    arrived = engine.submitted[0]
    assert (arrived.prompt_token_ids, arrived.seed) == (request.prompt_token_ids, request.seed)
    assert SamplingParams.from_json(arrived.params.to_json()) == SamplingParams.from_json(request.params.to_json())
    assert [chunk.token_ids for chunk in got] == [(105,), (106,), (107,)]
    assert got[0].logprobs[0].token_ids == (105, 106, 107)
    assert got[0].logprobs[0].ranks == (1, 2, 3)
    assert {chunk.request_id for chunk in got} == {"r"}
    assert got[-1].finish_reason is FinishReason.LENGTH


def test_what_the_engine_is_and_does_can_be_asked(engine: FakeEngine, remote: RemoteEngine) -> None:
    chunks: Chunks = queue.SimpleQueue()
    remote.submit(_request(max_tokens=3), chunks.put)
    _until_end(chunks)

    assert remote.info == engine.info
    assert remote.counters.rounds == engine.counters.rounds > 0


def test_requests_of_one_subscriber_share_a_call_per_round(engine: FakeEngine, remote: RemoteEngine) -> None:
    chunks: Chunks = queue.SimpleQueue()
    engine.pause()
    for number in range(10):
        remote.submit(_request(f"r{number}", prompt=number + 1, max_tokens=4), chunks.put)
    while engine.live_outputs < 10:
        pass
    engine.go_on()

    first = chunks.get(timeout=60)

    assert sorted(chunk.request_id for chunk in first) == sorted(f"r{number}" for number in range(10))
    assert [chunk.token_ids for chunk in first] == [(101 + number,) for number in range(10)]


def test_cancelling_ends_all_outputs_or_one(engine: FakeEngine, remote: RemoteEngine) -> None:
    chunks: Chunks = queue.SimpleQueue()
    remote.submit(_request(n=3, max_tokens=None), chunks.put)

    remote.cancel("r", 1)
    first = [chunk for chunk in _until_end(chunks) if chunk.finish_reason]
    remote.cancel("r")
    others = [chunk for chunk in _until_end(chunks, 2) if chunk.finish_reason]

    assert [chunk.index for chunk in first] == [1]
    assert sorted(chunk.index for chunk in others) == [0, 2]
    assert {chunk.finish_reason for chunk in (*first, *others)} == {FinishReason.CANCELLED}
    assert not engine.live


def test_requests_end_with_the_stream_that_brought_them(engine: FakeEngine, leader: str) -> None:
    chunks: Chunks = queue.SimpleQueue()
    with_one, with_other = RemoteEngine.connect(leader), RemoteEngine.connect(leader)
    with_one.submit(_request("same", max_tokens=None), chunks.put)
    with_other.submit(_request("same", prompt=50, max_tokens=None), chunks.put)
    while len(engine.live) < 2:
        pass

    with_one.close()
    while len(engine.live) > 1:
        pass

    assert engine.live == {one.request_id for one in engine.submitted if one.prompt_token_ids == (50,)}
    with_other.close()


def test_a_leader_that_goes_away_gives_every_live_request_one_error(engine: FakeEngine) -> None:
    server = EngineServer(engine)
    remote = RemoteEngine.connect(f"127.0.0.1:{server.start()}")
    chunks: Chunks = queue.SimpleQueue()
    for number in range(3):
        remote.submit(_request(f"r{number}", max_tokens=None), chunks.put)
    chunks.get(timeout=60)

    server.stop()
    errors = [chunk for chunk in _until_end(chunks, 3) if chunk.error]

    assert sorted(chunk.request_id for chunk in errors) == ["r0", "r1", "r2"]
    assert all("leader (rank 0, 127.0.0.1" in chunk.error for chunk in errors)
    remote.submit(_request("late"), chunks.put)
    assert "closed its connection" in chunks.get(timeout=60)[0].error
    remote.close()


def test_an_engine_that_has_ended_refuses_with_its_reason(engine: FakeEngine, remote: RemoteEngine) -> None:
    engine.fail("rank 1 died")
    chunks: Chunks = queue.SimpleQueue()

    remote.submit(_request(), chunks.put)

    assert chunks.get(timeout=60)[0].error == "rank 1 died"


def test_a_leader_that_is_not_there_is_an_error_that_names_its_address() -> None:
    with pytest.raises(EngineStoppedError, match=r"the leader at 127\.0\.0\.1:1 does not answer"):
        RemoteEngine.connect("127.0.0.1:1", timeout_s=0.3)


def test_a_port_in_use_is_an_error_that_names_it(engine: FakeEngine) -> None:
    first = EngineServer(engine)
    port = first.start()

    with pytest.raises(OutriderError, match=f"cannot listen on 127.0.0.1:{port}"):
        EngineServer(engine, port=port).start()

    first.stop()


def test_an_id_may_be_used_again_while_its_cancelled_request_still_runs(engine: FakeEngine, leader: str) -> None:
    async def scenario() -> list[SequenceChunk]:
        client = LeaderClient(leader)
        await client.connect()
        old: asyncio.Queue[list[SequenceChunk]] = asyncio.Queue()
        new: asyncio.Queue[list[SequenceChunk]] = asyncio.Queue()
        engine.pause()
        client.submit(_request("same", max_tokens=None), old.put_nowait)
        client.cancel("same")
        client.submit(_request("same", prompt=50, max_tokens=2), new.put_nowait)
        engine.go_on()
        got: list[SequenceChunk] = []
        while not got or got[-1].finish_reason is None:
            got += await asyncio.wait_for(new.get(), 10)
        await client.close()
        return got

    assert [chunk.token_ids for chunk in asyncio.run(scenario())] == [(150,), (151,)]


def test_a_gateway_may_have_what_runs_at_once_and_what_ends_in_a_round_besides() -> None:
    engine = FakeEngine(max_num_seqs=4, max_model_len=100_000)
    server = EngineServer(engine)

    async def scenario() -> None:
        client = LeaderClient(f"127.0.0.1:{server.start()}")
        await client.connect()

        async def answer(requests: int, max_tokens: int) -> None:
            ended = [asyncio.Event() for _ in range(requests)]
            for number, one in enumerate(ended):
                deliver = lambda chunks, one=one: chunks[-1].finish_reason and one.set()  # noqa: E731
                client.submit(_request(f"{max_tokens}/{number}", max_tokens=max_tokens), deliver)
            await asyncio.gather(*(one.wait() for one in ended))

        await answer(4, 2)
        assert client.places == 4, "long outputs leave places one at a time"
        for _ in range(40):
            await answer(8, 1)
        assert client.places > 4
        await answer(1, 500)
        assert client.places == 4
        await client.close()

    asyncio.run(scenario())
    server.stop()
    engine.close()
