"""Clients that do not read for a while: they give their places to others that wait, and lose nothing by it."""

import asyncio
import json
from pathlib import Path

import grpc
import pytest
from fakes import FakeEngine
from gateway.harness import eventually, pb, rest, running, stopping
from gateway.test_overload import accepted

from outrider import AsyncClient
from outrider.cluster.api.generation import Accepted, Event, Finished, Output


def test_a_place_is_free_when_the_replica_is_done_whoever_has_not_read_it_yet(model: Path) -> None:
    async def scenario() -> None:
        engine = FakeEngine(max_num_seqs=1, max_model_len=50_000, per_round=lambda given: 500)
        async with running(model, engine, write_timeout_s=600) as cluster:
            long = {"stopping": stopping(max_tokens=20_000), "response": pb.ResponseOptions(logprobs=5)}
            unread = await accepted(cluster, 2, **long)
            await eventually(lambda: not engine.live)

            async with AsyncClient(cluster.address, patience_s=0) as client:
                assert len((await client.generate(token_ids=[5], max_tokens=3)).token_ids) == 3

            for call in unread:
                assert (await rest(call))[-1].HasField("finished")

    asyncio.run(scenario())


def test_who_has_not_read_for_a_while_gives_way_to_who_waits(model: Path) -> None:
    async def scenario() -> None:
        engine = FakeEngine(max_num_seqs=2, max_model_len=10**7, per_round=lambda given: 50)
        async with running(model, engine, write_timeout_s=600) as cluster:
            unread = await accepted(cluster, 2, response=pb.ResponseOptions(logprobs=5))
            await eventually(lambda: len(engine.live) == 2)

            async with AsyncClient(cluster.address, patience_s=0) as client:
                assert len((await client.generate(token_ids=[5], max_tokens=3)).token_ids) == 3

            with pytest.raises(grpc.aio.AioRpcError, match="read nothing"):
                await asyncio.gather(*map(rest, unread))

    asyncio.run(scenario())


def test_over_http_too_who_has_not_read_for_a_while_gives_way_to_who_waits(model: Path) -> None:
    async def scenario() -> None:
        engine = FakeEngine(max_num_seqs=2, max_model_len=10**9, per_round=lambda given: 300, round_s=0.001)
        async with running(model, engine, http_port=0, write_timeout_s=600) as cluster:
            unread = [await _streamed_unread(cluster.gateway.http_port) for _ in range(2)]
            await eventually(lambda: len(engine.live) == 2)

            async with AsyncClient(cluster.address, patience_s=0) as client:
                assert len((await client.generate(token_ids=[5], max_tokens=3, timeout_s=60)).token_ids) == 3

            for writer in unread:
                writer.close()

    asyncio.run(scenario())


async def _streamed_unread(port: int) -> asyncio.StreamWriter:
    """A stream without end that has begun, and is not read."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    body = json.dumps({"prompt": [5], "max_tokens": 900_000_000, "stream": True}).encode()
    writer.write(f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    await reader.readline()
    return writer


def test_a_client_that_reads_late_gets_the_rest_after_others_had_its_place(model: Path) -> None:
    async def scenario() -> None:
        most = 30_000
        engine = FakeEngine(max_num_seqs=1, max_model_len=100_000, per_round=lambda given: 500 if given < most else 0)
        async with running(model, engine, write_timeout_s=600) as cluster, AsyncClient(cluster.address) as client:
            asked = {"token_ids": [5], "max_tokens": 30_000, "logprobs": 20, "seed": 3}
            async with AsyncClient(cluster.address) as first:  # gRPC buffers more on a connection that received much
                expected = await first.generate(**asked)
            most = 25_000
            stream = client.stream(**asked)
            events: list[Event] = [await anext(stream), await anext(stream)]

            assert len((await client.generate(token_ids=[6], max_tokens=3)).token_ids) == 3
            most = 30_000
            events += [event async for event in stream]

            outputs = [event for event in events if isinstance(event, Output)]
            found = [token_id for output in outputs for token_id in output.token_ids]
            assert found == expected.token_ids
            assert [one for output in outputs for one in output.logprobs] == expected.outputs[0].logprobs
            assert [type(event) for event in events if not isinstance(event, Output)] == [Accepted, Finished]
            assert cluster.gateway.metrics.registry.get_sample_value("outrider_gateway_resumed_requests_total") == 1

    asyncio.run(scenario())
