"""No replica is ready: a request starts one, and waits for it as it would for its turn."""

import asyncio
import time
from pathlib import Path

import grpc
import httpx
import pytest
from gateway.harness import Cluster, eventually, running, stopping, tokens

from outrider import AsyncClient
from outrider.cluster.api.load_report import REPORT_EVERY_S

Code = grpc.StatusCode
SHORT = stopping(max_tokens=2)


def test_a_request_that_finds_no_replica_is_load_so_that_one_is_started(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, ready=False, http_port=0, max_queue_wait_s=0) as cluster:
            url = f"http://127.0.0.1:{cluster.gateway.http_port}"
            async with httpx.AsyncClient(base_url=url, timeout=60) as http:
                assert (await http.get("/v1/models")).status_code == 503
            await asyncio.sleep(2 * REPORT_EVERY_S)
            assert not cluster.controller.waiting.tokens, "to list models takes no replica"

            with pytest.raises(grpc.aio.AioRpcError, match="no replica is ready"):
                await cluster.inference.Generate(tokens(5)).read()

            await eventually(lambda: cluster.controller.waiting.tokens == 1)

    asyncio.run(scenario())


async def _start_replica(cluster: Cluster) -> None:
    await cluster.controller.publish(("r0", 1, cluster.leader_address))


@pytest.mark.parametrize("over", ["grpc", "http"])
def test_a_request_waits_for_the_replica_that_it_starts(model: Path, over: str) -> None:
    async def scenario() -> None:
        async with running(model, ready=False, http_port=0) as cluster:
            url = f"http://127.0.0.1:{cluster.gateway.http_port}"
            async with AsyncClient(cluster.address) as client, httpx.AsyncClient(base_url=url, timeout=60) as http:
                if over == "grpc":
                    answer = asyncio.create_task(client.generate(token_ids=[5], max_tokens=2))
                else:
                    answer = asyncio.create_task(http.post("/v1/completions", json={"prompt": [5], "max_tokens": 2}))
                await eventually(lambda: cluster.controller.waiting.tokens > 0)
                assert not answer.done()

                await _start_replica(cluster)

                if over == "grpc":
                    assert len((await answer).token_ids) == 2
                else:
                    assert (await answer).json()["usage"]["completion_tokens"] == 2

    asyncio.run(scenario())


def test_a_request_waits_for_a_first_replica_until_its_deadline_and_not_longer_than_for_a_turn(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, ready=False, max_queue_wait_s=0.5) as cluster:
            began = time.monotonic()
            with pytest.raises(grpc.aio.AioRpcError, match="no replica is ready") as caught:
                await cluster.inference.Generate(tokens(5, stopping=SHORT)).read()
            assert caught.value.code() is Code.UNAVAILABLE
            assert time.monotonic() - began >= 0.5

            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await cluster.inference.Generate(tokens(5, stopping=SHORT), timeout=0.1).read()
            assert caught.value.code() in (Code.DEADLINE_EXCEEDED, Code.UNAVAILABLE)

            await _start_replica(cluster)
            await eventually(lambda: cluster.gateway.ready)
            assert (await cluster.events(tokens(5, stopping=SHORT)))[-1].HasField("finished")

    asyncio.run(scenario())


def test_no_more_requests_wait_for_a_first_replica_than_may_be_live(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, ready=False, max_queue_wait_s=600, max_live_requests=2) as cluster:
            waiting = [cluster.inference.Generate(tokens(5, stopping=SHORT)) for _ in range(2)]
            firsts = [asyncio.ensure_future(call.read()) for call in waiting]
            await eventually(lambda: cluster.controller.waiting.tokens == 2)

            with pytest.raises(grpc.aio.AioRpcError, match="wait for a first replica") as caught:
                await cluster.inference.Generate(tokens(5, stopping=SHORT)).read()
            assert caught.value.code() is Code.RESOURCE_EXHAUSTED

            await _start_replica(cluster)
            assert all(message.HasField("accepted") for message in await asyncio.gather(*firsts))

    asyncio.run(scenario())


def test_a_gateway_that_leaves_ends_the_wait_for_a_first_replica(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, ready=False, max_queue_wait_s=600) as cluster:
            first = asyncio.ensure_future(cluster.inference.Generate(tokens(5)).read())
            await eventually(lambda: cluster.controller.waiting.tokens == 1)

            draining = asyncio.create_task(cluster.gateway.drain())

            with pytest.raises(grpc.aio.AioRpcError, match="draining") as caught:
                await first
            assert caught.value.code() is Code.UNAVAILABLE
            await draining

    asyncio.run(scenario())
