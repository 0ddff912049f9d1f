"""A gateway that is silent is left for another, and a client that does not read is left by its gateway."""

import asyncio
import dataclasses
import socket
import threading
from pathlib import Path

import grpc
import pytest
from fakes import FakeEngine
from gateway.harness import Cluster, eventually, pb, rest, running, stopping, tokens
from gateway.test_gateway_process import child, start

from outrider import AsyncClient, Client
from outrider.cluster.api.generation import Accepted, Event, Finished, Output
from outrider.cluster.gateway.server import Gateway

LONG = 100_000


async def another_gateway(cluster: Cluster) -> Gateway:
    gateway = Gateway(dataclasses.replace(cluster.gateway.settings, port=0))
    await gateway.start()
    await eventually(lambda: gateway.ready)
    return gateway


def said(events: list[Event]) -> list[int]:
    return [token for event in events if isinstance(event, Output) for token in event.token_ids]


def test_heartbeats_come_while_nothing_else_does_and_only_if_asked_for(model: Path) -> None:
    async def scenario() -> None:
        async with running(model) as cluster:
            cluster.engine.pause()
            options = pb.ResponseOptions(heartbeat_interval_ms=100)
            call = cluster.inference.Generate(tokens(5, response=options, stopping=stopping(max_tokens=3)))
            plain = cluster.inference.Generate(tokens(6, stopping=stopping(max_tokens=3)))

            kinds = [(await call.read()).WhichOneof("event") for _ in range(4)]
            cluster.engine.go_on()

            assert kinds == ["accepted", "heartbeat", "heartbeat", "heartbeat"]
            assert (await rest(call))[-1].HasField("finished")
            assert not any(event.HasField("heartbeat") for event in await rest(plain))

    asyncio.run(scenario())


@pytest.mark.parametrize("end", ["drain", "close"])
def test_a_client_of_several_gateways_goes_on_at_another(model: Path, end: str) -> None:
    async def scenario() -> None:
        async with running(model, FakeEngine(max_model_len=LONG), drain_grace_s=0.05) as cluster:
            other = await another_gateway(cluster)
            async with AsyncClient(["127.0.0.1:1", cluster.address, f"127.0.0.1:{other.port}"]) as client:
                whole = await client.generate(token_ids=[5], max_tokens=120)
                cluster.engine.stall_after(100)
                events: list[Event] = []
                async for event in client.stream(token_ids=[5], max_tokens=120):
                    events.append(event)
                    if len(events) == 12:
                        await getattr(cluster.gateway, end)()
                        cluster.engine.stall_after(LONG)

                assert said(events) == whole.token_ids
                assert client.address == f"127.0.0.1:{other.port}"
            await other.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("plain", [False, True])
def test_a_frozen_gateway_is_left_for_another(model: Path, plain: bool) -> None:
    """It answers nothing, and closes no connection."""

    def ask(addresses: list[str], engine: FakeEngine) -> list[Event]:
        events: list[Event] = []
        with Client(addresses) as client:
            for event in client.stream(token_ids=[5], max_tokens=60):
                events.append(event)
                freeze(events, engine)
        return events

    async def ask_without_blocking(addresses: list[str], engine: FakeEngine) -> list[Event]:
        events: list[Event] = []
        async with AsyncClient(addresses) as client:
            async for event in client.stream(token_ids=[5], max_tokens=60):
                events.append(event)
                freeze(events, engine)
        return events

    def freeze(events: list[Event], engine: FakeEngine) -> None:
        if len(events) == 5:
            engine.stall_after(40)
            process = child()
            assert process is not None
            process.suspend()
            engine.stall_after(LONG)

    async def scenario() -> None:
        async with running(model, FakeEngine(max_model_len=LONG, round_s=0.05)) as cluster:
            gateway = await asyncio.to_thread(start, cluster.controller.address)
            await asyncio.to_thread(gateway.wait_until_ready, threading.Event())
            addresses = [gateway.address, cluster.address]

            asked = asyncio.to_thread(ask, addresses, cluster.engine) if plain else None
            events = await (asked or ask_without_blocking(addresses, cluster.engine))

            assert said(events) == [100 + (5 + step) % 100 for step in range(60)]
            assert [type(event) for event in events].count(Accepted) == 1
            assert [type(event) for event in events].count(Finished) == 1
            cancel_running = threading.Event()
            cancel_running.set()
            await asyncio.to_thread(gateway.close, cancel_running)

    asyncio.run(scenario())


@pytest.mark.parametrize("plain", [False, True])
def test_a_gateway_that_is_frozen_when_a_client_first_asks_it_is_left_for_another(model: Path, plain: bool) -> None:
    """The system accepts the connection, and the gateway sends no HTTP/2 settings."""

    def ask(addresses: list[str]) -> list[int]:
        with Client(addresses) as client:
            return client.generate(token_ids=[5], max_tokens=6).token_ids

    async def ask_without_blocking(addresses: list[str]) -> list[int]:
        async with AsyncClient(addresses) as client:
            return (await client.generate(token_ids=[5], max_tokens=6)).token_ids

    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as frozen:
            async with running(model, FakeEngine(max_model_len=LONG)) as cluster:
                addresses = [f"127.0.0.1:{frozen.getsockname()[1]}", cluster.address]

                answer = await (asyncio.to_thread(ask, addresses) if plain else ask_without_blocking(addresses))

                assert answer == [105 + step for step in range(6)]

    asyncio.run(scenario())


def test_a_client_that_does_not_read_gives_its_place_back(model: Path) -> None:
    async def scenario() -> None:
        engine = FakeEngine(max_model_len=LONG, per_round=lambda given: 500)
        async with running(model, engine, max_live_requests=1, write_timeout_s=0.3) as cluster:
            call = cluster.inference.Generate(tokens(5, response=pb.ResponseOptions(logprobs=5)))
            assert (await call.read()).HasField("accepted")

            await eventually(lambda: cluster.gateway.live_requests == 0)

            await eventually(lambda: not engine.live)
            async with AsyncClient(cluster.address, patience_s=0) as client:
                assert len((await client.generate(token_ids=[5], max_tokens=3)).token_ids) == 3
            with pytest.raises(grpc.aio.AioRpcError, match="read nothing"):
                await rest(call)
            name, labels = "outrider_gateway_requests_total", {"status": "slow_reader"}
            await eventually(lambda: cluster.gateway.metrics.registry.get_sample_value(name, labels) == 1)

    asyncio.run(scenario())
