"""Many streams over HTTP, some closed early: no request, task or descriptor leaks, and each has its own tokens."""

import asyncio
import json
import random
from pathlib import Path

import httpx
import psutil
import pytest
from fakes import FakeEngine
from gateway.harness import eventually, running

CLIENTS = 64


@pytest.mark.timeout(900)
@pytest.mark.parametrize("streams", [300, pytest.param(10_000, marks=pytest.mark.full)])
def test_streams_that_clients_close_early_leak_nothing(model: Path, streams: int) -> None:
    async def stream(http: httpx.AsyncClient, number: int, rng: random.Random) -> None:
        first, length = number % 100 + 5, rng.randint(1, 40)
        body = {"prompt": [first], "max_tokens": length, "stream": True, "return_token_ids": True}
        received: list[int] = []
        async with http.stream("POST", "/v1/completions", json=body) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    received += json.loads(line.removeprefix("data: "))["choices"][0]["token_ids"]
                if number % 3 == 0 and len(received) > length // 2:
                    return
        assert received == [100 + (first + step) % 100 for step in range(length)]

    async def scenario() -> None:
        async with running(model, FakeEngine(), http_port=0) as cluster:
            url = f"http://127.0.0.1:{cluster.gateway.http_port}"
            process = psutil.Process()
            limits = httpx.Limits(max_connections=CLIENTS)
            rng, slots = random.Random(1), asyncio.Semaphore(CLIENTS)

            async def one(http: httpx.AsyncClient, number: int) -> None:
                async with slots:
                    await stream(http, number, rng)

            async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
                await asyncio.gather(*(one(http, number) for number in range(20)))
                files = process.num_fds()
                await asyncio.gather(*(one(http, number) for number in range(streams)))
            await eventually(lambda: not cluster.engine.live and not cluster.gateway.live_requests)
            await eventually(lambda: process.num_fds() <= files)
            tasks = {task.get_coro().__qualname__ for task in asyncio.all_tasks()}  # type: ignore[union-attr]
            assert not [name for name in tasks if name.startswith(("Reply.", "_disconnected"))]

    asyncio.run(scenario())
