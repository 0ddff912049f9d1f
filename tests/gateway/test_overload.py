"""More is asked for than replicas can do: who waits, who is refused, and what each caller gets."""

import asyncio
import contextlib
from pathlib import Path

import grpc
import httpx
import pytest
from fakes import FakeEngine
from gateway.harness import KEY, Cluster, eventually, rest, running, stopping, tokens
from gateway.test_auth import line

from outrider import AsyncClient, ClientSecurity
from outrider.cluster.cli.commands.status import gateway_line
from outrider.cluster.gateway.access.settings import AccessSettings
from outrider.cluster.gateway.server import Gateway
from outrider.cluster.gateway.settings import GatewaySettings
from outrider.workers.types.errors import OverloadedError

Code = grpc.StatusCode
PLACES = 4  # of a replica: the sequences that it runs at once


def paused(**settings: object) -> FakeEngine:
    engine = FakeEngine(max_num_seqs=PLACES, **settings)
    engine.pause()
    return engine


async def accepted(cluster: Cluster, count: int, **fields: object) -> list[grpc.aio.UnaryStreamCall]:
    """Requests, accepted one after the other."""
    calls = []
    for n in range(count):
        calls.append(cluster.inference.Generate(tokens(5 + n, **fields)))
        assert (await calls[-1].read()).HasField("accepted")
    return calls


def test_what_replicas_have_no_place_for_waits_at_the_gateway_and_comes_to_its_turn(model: Path) -> None:
    async def scenario() -> None:
        engine = paused()
        async with running(model, engine) as cluster:
            calls = await accepted(cluster, 3 * PLACES, stopping=stopping(max_tokens=3))
            await eventually(lambda: len(engine.live) == PLACES)
            sample = cluster.gateway.metrics.registry.get_sample_value
            assert sample("outrider_gateway_queued_requests") == 2 * PLACES

            engine.go_on()

            for n, call in enumerate(calls):
                events = await rest(call)
                said = [token for event in events for token in event.output.token_ids]
                assert said == [105 + n, 106 + n, 107 + n]
            assert sample("outrider_gateway_queued_requests") == 0
            assert cluster.gateway.live_requests == 0

    asyncio.run(scenario())


def test_a_request_that_leaves_the_queue_never_reaches_a_replica(model: Path) -> None:
    async def scenario() -> None:
        engine = paused()
        async with running(model, engine) as cluster:
            calls = await accepted(cluster, PLACES + 2, stopping=stopping(max_tokens=2))
            calls[PLACES].cancel()
            await eventually(lambda: cluster.gateway.live_requests == PLACES + 1)

            engine.go_on()

            for call in calls[:PLACES] + calls[PLACES + 1 :]:
                assert (await rest(call))[-1].HasField("finished")
            assert len(engine.submitted) == PLACES + 1

    asyncio.run(scenario())


def test_what_waits_when_the_gateway_leaves_may_go_on_at_another(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, paused(), drain_grace_s=0.05) as cluster:
            calls = await accepted(cluster, PLACES + 1)

            drained = asyncio.create_task(cluster.gateway.drain())

            error = (await rest(calls[-1]))[-1].error
            assert error.resumable
            for call in calls:
                call.cancel()
            await drained

    asyncio.run(scenario())


def test_what_waits_goes_on_at_the_next_replica_when_the_last_is_lost(model: Path) -> None:
    async def scenario() -> None:
        engine, another = paused(), FakeEngine()
        async with running(model, engine) as cluster, running(model, another) as other:
            calls = await accepted(cluster, PLACES + 1, stopping=stopping(max_tokens=2))

            await cluster.controller.publish(("r1", 1, other.leader_address))
            await cluster.controller.end("r0", 1, "rank 0 died")

            for call in calls:
                assert (await rest(call))[-1].HasField("finished")

    asyncio.run(scenario())


def test_two_gateways_share_a_replicas_places_and_one_alone_has_all(model: Path) -> None:
    async def scenario() -> None:
        engine = paused()
        async with running(model, engine) as cluster, _second_gateway(cluster) as second:
            calls = await accepted(cluster, 2 * PLACES)
            await eventually(lambda: len(engine.live) >= PLACES - 1)

            more = [second.stream(token_ids=[9]) for _ in range(2 * PLACES)]
            for stream in more:
                await anext(stream)
            await eventually(lambda: len(engine.live) >= PLACES + 2)

            assert len(engine.live) <= 2 * PLACES, "each has no more than one replica's places"
            for stream in more:
                await stream.aclose()
            for call in calls:
                call.cancel()

    asyncio.run(scenario())


@contextlib.asynccontextmanager
async def _second_gateway(cluster: Cluster):  # noqa: ANN202
    gateway = Gateway(GatewaySettings(controller=cluster.controller.address, port=0, http_port=0, cluster_key=KEY))
    await gateway.start()
    try:
        await eventually(lambda: gateway.ready)
        async with AsyncClient(f"127.0.0.1:{gateway.port}") as client:
            yield client
    finally:
        await gateway.close()


async def _known_wait(cluster: Cluster, engine: FakeEngine) -> list[grpc.aio.UnaryStreamCall]:
    """The gateway knows how long places are held; all are, and as many requests wait."""
    held = await accepted(cluster, PLACES, stopping=stopping(max_tokens=1))
    await asyncio.sleep(0.3)
    engine.go_on()
    for call in held:
        await rest(call)
    engine.pause()
    return await accepted(cluster, 2 * PLACES, stopping=stopping(max_tokens=1))


def test_who_would_wait_too_long_is_refused_and_so_is_who_cannot_wait_so_long(model: Path) -> None:
    async def scenario() -> None:
        engine = paused()
        async with running(model, engine) as cluster:
            await _known_wait(cluster, engine)
            late = cluster.inference.Generate(tokens(5), timeout=0.2)
            with pytest.raises(grpc.aio.AioRpcError, match="its deadline is in 0") as caught:
                await late.read()
            assert caught.value.code() is Code.RESOURCE_EXHAUSTED
            assert await accepted(cluster, 1)
        async with running(model, engine := paused(), max_queue_wait_s=0.1) as cluster:
            with pytest.raises(grpc.aio.AioRpcError, match=r"the limit is 0\.1 s") as caught:
                await _known_wait(cluster, engine)
            assert caught.value.code() is Code.RESOURCE_EXHAUSTED
            sample = cluster.gateway.metrics.registry.get_sample_value
            assert sample("outrider_gateway_refused_requests_total", {"cause": "wait"}) == 1

    asyncio.run(scenario())


def test_over_http_too_who_would_wait_too_long_is_refused_and_told_for_how_long(model: Path) -> None:
    async def scenario() -> None:
        engine, body = paused(), {"prompt": [5], "max_tokens": 1}
        async with running(model, engine, http_port=0) as cluster:
            url = f"http://127.0.0.1:{cluster.gateway.http_port}"
            await _known_wait(cluster, engine)
            await accepted(cluster, 4 * PLACES, stopping=stopping(max_tokens=1))
            async with httpx.AsyncClient(base_url=url, timeout=60) as http:
                for name in ("x-stainless-read-timeout", "X-Stainless-Timeout"):
                    refused = await http.post("/v1/completions", json=body, headers={name: "0.2"})
                    assert refused.status_code == 429, refused.text
                    assert "its deadline is in 0.2 s" in refused.json()["error"]["message"]
                    assert int(refused.headers["retry-after"]) >= 2, "its turn is not before"
                sample = cluster.gateway.metrics.registry.get_sample_value
                assert sample("outrider_gateway_refused_requests_total", {"cause": "deadline"}) == 2
                waits = [http.post("/v1/completions", json=body, headers=one) for one in ({}, {name: "none"})]
                answers = [asyncio.create_task(one) for one in waits]
                await eventually(lambda: cluster.gateway.live_requests == 6 * PLACES + 2)
                engine.go_on()
                assert [(await one).status_code for one in answers] == [200, 200]

    asyncio.run(scenario())


def test_what_waits_at_the_gateway_is_reported_as_load_until_nothing_does(model: Path) -> None:
    async def scenario() -> None:
        engine = paused()
        async with running(model, engine) as cluster:
            await accepted(cluster, PLACES + 2, stopping=stopping(max_tokens=2))
            await accepted(cluster, 1, num_sequences=3, stopping=stopping(max_tokens=2))

            await eventually(lambda: cluster.controller.waiting.tokens == 2 + 3)
            assert cluster.controller.waiting.gateway
            await eventually(lambda: cluster.controller.waiting.oldest_wait_s > 0)
            engine.go_on()
            await eventually(lambda: not cluster.controller.waiting.tokens)
            assert not cluster.controller.waiting.oldest_wait_s

    asyncio.run(scenario())


def test_the_status_says_what_the_gateway_has_refused_and_what_waits(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, paused(), max_live_requests=PLACES + 1) as cluster:
            await accepted(cluster, PLACES + 1)
            async with AsyncClient(cluster.address, patience_s=0) as client:
                with pytest.raises(OverloadedError):
                    await client.generate(token_ids=[5])
                gateway = (await client.status()).gateway
            assert gateway is not None

            assert (gateway.live_requests, gateway.queued_requests) == (PLACES + 1, 1)
            assert gateway.refused == {"live_requests": 1}
            assert not gateway.controller_lost
            assert "1 queued" in gateway_line(gateway)
            assert "refused: live_requests 1" in gateway_line(gateway)

    asyncio.run(scenario())


def test_a_request_is_refused_for_lack_of_room_before_it_is_looked_at(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, paused(), max_live_requests=1) as cluster:
            await accepted(cluster, 1)

            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await cluster.inference.Generate(tokens(4000, stopping=stopping(stop=["x"] * 999))).read()

            assert caught.value.code() is Code.RESOURCE_EXHAUSTED, "else it would be INVALID_ARGUMENT"

    asyncio.run(scenario())


def test_of_two_tokens_the_light_one_gets_its_half(model: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        file = tmp_path / "tokens"
        file.write_text(line("heavy", "inference", "or-heavy") + line("light", "inference", "or-light"))
        engine = FakeEngine(max_num_seqs=8, round_s=0.04)
        counts = {"or-heavy": 100, "or-light": 16}
        done: list[str] = []

        async def ask(client: AsyncClient, token: str) -> None:
            while len(done) < 240:
                await client.generate(token_ids=[5], max_tokens=5)
                done.append(token)

        async with (
            running(model, engine, access=AccessSettings(auth_token_file=file)) as cluster,
            contextlib.AsyncExitStack() as s,
        ):
            clients = {one: AsyncClient(cluster.address, ClientSecurity(token=one)) for one in counts}
            for client in clients.values():
                await s.enter_async_context(client)
            await asyncio.gather(*(ask(clients[one], one) for one in counts for _ in range(counts[one])))

        counted = done[40:240]  # the heavy one asks first, and has all places at the start
        assert counted.count("or-light") >= 0.45 * len(counted)

    asyncio.run(scenario())
