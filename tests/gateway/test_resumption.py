"""No request lost: what happens to an accepted request when its replica is, and the text it has in the end."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import grpc
import pytest
from fakes import EOS, FakeEngine
from gateway.harness import KEY, Cluster, eventually, pb, rest, running, stopping, tokens

from outrider.workers.serving.rpc.service import EngineServer
from outrider.workers.text.tokenizer import Tokenizer

LONG = 100_000


@contextlib.asynccontextmanager
async def another(cluster: Cluster, engine: FakeEngine, *, replaces: bool = False) -> AsyncIterator[EngineServer]:
    """A second replica, in the table beside the first or in its place."""
    leader = EngineServer(engine)
    address = f"127.0.0.1:{await asyncio.to_thread(leader.start)}"
    routes = [("r0", 2, address)] if replaces else [("r0", 1, cluster.leader_address), ("r1", 1, address)]
    await cluster.controller.publish(*routes)
    try:
        yield leader
    finally:
        await asyncio.to_thread(leader.stop)
        engine.close()


def ready_replicas(cluster: Cluster) -> float | None:
    return cluster.gateway.metrics.registry.get_sample_value("outrider_gateway_ready_replicas")


def moves(cluster: Cluster) -> float | None:
    return cluster.gateway.metrics.registry.get_sample_value("outrider_gateway_request_moves_total")


def output_tokens(events: list[pb.GenerateResponse], index: int = 0) -> list[int]:
    return [
        t
        for event in events
        if event.HasField("output") and event.output.index == index
        for t in event.output.token_ids
    ]


def text(events: list[pb.GenerateResponse]) -> str:
    return "".join(event.output.text for event in events if event.HasField("output"))


def heard(events: list[pb.GenerateResponse], count: int) -> list[pb.GenerateResponse]:
    """Those that came up to so many tokens: a message may have several."""
    return [event for n, event in enumerate(events) if len(output_tokens(events[: n + 1])) <= count]


async def begun(cluster: Cluster, least: int = 3, **fields: object) -> tuple["grpc.aio.UnaryStreamCall", list]:
    """A call, and its events up to `least` tokens of output 0."""
    call = cluster.inference.Generate(tokens(5, **fields))
    events = []
    while len(output_tokens(events)) < least:
        events.append(await call.read())
    return call, events


def test_a_request_whose_leader_dies_goes_on_elsewhere_with_the_same_tokens_each_once(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, FakeEngine(max_model_len=LONG)) as cluster:
            limits = stopping(max_tokens=60)
            undisturbed = await cluster.events(tokens(5, stopping=limits))
            other = FakeEngine(max_model_len=LONG)
            async with another(cluster, other):
                await eventually(lambda: ready_replicas(cluster) == 2)
                cluster.engine.stall_after(10)
                call, events = await begun(cluster, stopping=limits)

                await asyncio.to_thread(cluster.leader.stop)
                events += await rest(call)

                assert output_tokens(events) == output_tokens(undisturbed)
                assert text(events) == text(undisturbed)
                assert events[-1].finished.usage.completion_tokens == 60
                (resumed,) = other.submitted
                assert resumed.prompt_token_ids == (5,)
                assert (
                    list(resumed.resumed[0].token_ids)
                    == output_tokens(undisturbed)[: len(resumed.resumed[0].token_ids)]
                )
                assert len(resumed.resumed[0].token_ids) >= 3
                assert resumed.seed == cluster.engine.submitted[-1].seed
                assert moves(cluster) == 1

    asyncio.run(scenario())


def test_of_several_outputs_only_the_unfinished_are_resumed(model: Path) -> None:
    async def scenario() -> None:
        def script(request, index):  # noqa: ANN001, ANN202  # the fake's own
            return [50, 1] if index == 1 else [60 + index] * 1000  # output 1 ends at once

        async with running(model, FakeEngine(script, max_model_len=LONG)) as cluster:
            other = FakeEngine(script, max_model_len=LONG)
            async with another(cluster, other):
                await eventually(lambda: ready_replicas(cluster) == 2)
                cluster.engine.stall_after(10)
                call, events = await begun(cluster, num_sequences=3, stopping=stopping(max_tokens=80))

                await asyncio.to_thread(cluster.leader.stop)
                events += await rest(call)

                assert [output.index for output in other.submitted[0].resumed] == [0, 2]
                assert [len(output_tokens(events, index)) for index in range(3)] == [80, 2, 80]
                assert sorted(e.finished.index for e in events if e.HasField("finished")) == [0, 1, 2]

    asyncio.run(scenario())


def test_a_stop_string_that_began_before_the_loss_still_ends_the_text_behind_it(model: Path) -> None:
    async def scenario() -> None:
        letters = [ord("a") + 3, ord("b") + 3, ord("c") + 3, ord("d") + 3]

        def script(request, index):  # noqa: ANN001, ANN202  # the fake's own
            return [letters[0]] * 5 + letters * 100

        async with running(model, FakeEngine(script, max_model_len=LONG)) as cluster:
            undisturbed = await cluster.events(tokens(5, stopping=stopping(max_tokens=50)))
            stop = text(undisturbed)[8:12]
            limits = stopping(max_tokens=50, stop=[stop])
            expected = await cluster.events(tokens(5, stopping=limits))
            other = FakeEngine(script, max_model_len=LONG)
            async with another(cluster, other):
                await eventually(lambda: ready_replicas(cluster) == 2)
                cluster.engine._per_round = lambda given: (
                    1 if given < 9 else 0
                )  # never gets past the stop's first letter
                call, events = await begun(cluster, least=9, stopping=limits)

                await asyncio.to_thread(cluster.leader.stop)
                events += await rest(call)

                assert (text(events), output_tokens(events)) == (text(expected), output_tokens(expected))
                assert events[-1].finished.stop_string == stop

    asyncio.run(scenario())


def test_a_request_waits_for_the_generation_that_the_controller_has_announced(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, FakeEngine(max_model_len=LONG)) as cluster:
            cluster.engine.stall_after(10)
            call, events = await begun(cluster, stopping=stopping(max_tokens=60))
            await asyncio.to_thread(cluster.leader.stop)
            await cluster.controller.end("r0", 1, "rank 1 died", pending=1)
            await eventually(lambda: not cluster.gateway.ready)
            assert cluster.gateway.live_requests == 1

            async with another(cluster, FakeEngine(max_model_len=LONG), replaces=True):
                events += await rest(call)

            assert len(output_tokens(events)) == 60

    asyncio.run(scenario())


def test_an_engine_that_fails_gives_its_requests_to_others(model: Path) -> None:
    async def scenario() -> None:
        first, second = FakeEngine(max_model_len=LONG), FakeEngine(max_model_len=LONG)
        async with running(model, first) as cluster, another(cluster, second):
            await eventually(lambda: ready_replicas(cluster) == 2)
            first.stall_after(10)
            call, events = await begun(cluster, stopping=stopping(max_tokens=60))

            first.fail("rank 1 did not answer within 300 s in round 7")

            assert len(output_tokens(events + await rest(call))) == 60
            assert second.submitted

    asyncio.run(scenario())


def test_other_numerics_are_never_asked_and_the_error_says_so(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, FakeEngine(max_model_len=LONG)) as cluster:
            other = FakeEngine(max_model_len=LONG, fingerprint="cafe")
            async with another(cluster, other):
                await eventually(lambda: ready_replicas(cluster) == 2)
                cluster.engine.stall_after(10)
                call, _ = await begun(cluster, stopping=stopping(max_tokens=600))
                await cluster.controller.publish(("r1", 1, ""))  # r0 takes no more
                await cluster.controller.end("r0", 1, "rank 1 died")

                events = await rest(call)

                assert events[-1].error.message == (
                    "replica r0 (generation 1) ended: rank 1 died; no replica with fingerprint feedbeef is left "
                    "(r1 (generation 1) has cafe)"
                )
                assert not other.submitted

    asyncio.run(scenario())


POISON = 66


@contextlib.asynccontextmanager
async def replicas(cluster: Cluster, *engines: FakeEngine) -> AsyncIterator[None]:
    """In the place of the first, all of them at once."""
    async with contextlib.AsyncExitStack() as stack:
        routes = []
        for generation, engine in enumerate(engines, 1):
            stack.callback(engine.close)
            leader = EngineServer(engine, key=KEY)
            stack.push_async_callback(asyncio.to_thread, leader.stop)
            routes.append((f"p{generation}", generation, f"127.0.0.1:{await asyncio.to_thread(leader.start)}"))
        await cluster.controller.publish(*routes)
        await eventually(lambda: ready_replicas(cluster) == len(engines))
        watching = asyncio.create_task(end_those_that_fail(cluster, engines))
        yield
        watching.cancel()


async def end_those_that_fail(cluster: Cluster, engines: Sequence[FakeEngine]) -> None:
    """As a controller does, some time after requests have heard of it."""
    ended: set[int] = set()
    while True:
        for generation, engine in enumerate(engines, 1):
            if engine.failed and generation not in ended:
                ended.add(generation)
                await asyncio.sleep(0.2)
                await cluster.controller.end(f"p{generation}", generation, "rank 0 failed", pending=1)
        await asyncio.sleep(0.001)


def test_a_request_that_ends_every_engine_it_meets_meets_two(model: Path) -> None:
    async def scenario() -> None:
        engines = [FakeEngine(max_model_len=LONG, poison=POISON) for _ in range(6)]
        async with running(model) as cluster, replicas(cluster, *engines):
            events = await cluster.events(tokens(POISON))

            assert [event.WhichOneof("event") for event in events] == ["accepted", "error"]
            assert "2 replicas in a row were lost while computing its next token" in events[-1].error.message
            assert not events[-1].error.resumable
            assert sum(engine.failed for engine in engines) == 2
            sample = cluster.gateway.metrics.registry.get_sample_value
            assert sample("outrider_gateway_quarantined_requests_total") == 1

    asyncio.run(scenario())


def test_who_is_beside_a_poisonous_request_finishes(model: Path) -> None:
    """Those too that had no token yet when it took their replica along."""

    async def scenario() -> None:
        engines = [FakeEngine(max_model_len=LONG, poison=POISON, round_s=0.02) for _ in range(5)]
        async with running(model) as cluster, replicas(cluster, *engines):
            for engine in engines:
                engine.pause()
            asked = [cluster.events(tokens(n, stopping=stopping(max_tokens=20))) for n in range(5, 25)]
            bystanders = asyncio.gather(*asked, cluster.events(tokens(POISON)))
            await eventually(lambda: sum(len(engine.submitted) for engine in engines) == 21)

            for engine in engines:
                engine.go_on()
            *answers, poisonous = await bystanders

            for prompt, events in zip(range(5, 25), answers, strict=True):
                assert output_tokens(events) == [100 + (prompt + step) % 100 for step in range(20)]
            assert poisonous[-1].HasField("error")
            assert sum(engine.failed for engine in engines) == 2

    asyncio.run(scenario())


def test_a_request_that_only_waited_at_each_replica_that_was_lost_is_moved_on(model: Path) -> None:
    async def scenario() -> None:
        engines = [FakeEngine(max_model_len=LONG) for _ in range(6)]
        async with running(model) as cluster, replicas(cluster, *engines):
            for engine in engines:
                engine.pause()
            events = asyncio.create_task(cluster.events(tokens(5, stopping=stopping(max_tokens=20))))

            for _ in engines[1:]:
                await eventually(lambda: any(engine.live for engine in engines))
                next(engine for engine in engines if engine.live).fail("rank 1 died")
                await eventually(lambda: not any(engine.live for engine in engines if engine.failed))
            await eventually(lambda: any(engine.live for engine in engines))
            for engine in engines:
                engine.go_on()

            assert len(output_tokens(await events)) == 20
            assert (moves(cluster) or 0) >= 5

    asyncio.run(scenario())


def test_who_waits_for_a_successor_is_told_when_the_gateway_shuts_down(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, FakeEngine(max_model_len=LONG), drain_grace_s=0.2) as cluster:
            cluster.engine.stall_after(10)
            call, _ = await begun(cluster)
            await asyncio.to_thread(cluster.leader.stop)
            await cluster.controller.end("r0", 1, "rank 1 died", pending=1)

            drain = asyncio.create_task(cluster.gateway.drain())

            assert "gateway shut down" in (await rest(call))[-1].error.message
            await drain

    asyncio.run(scenario())


@pytest.mark.parametrize("had", [0, 1, 17, 39, 40])
def test_a_client_resumes_what_another_gateway_began_behind_the_tokens_it_has(model: Path, had: int) -> None:
    async def scenario() -> None:
        async with running(model, FakeEngine(max_model_len=LONG)) as cluster:
            unstopped = text(await cluster.events(tokens(5, stopping=stopping(max_tokens=40))))
            limits = stopping(max_tokens=40, stop=[unstopped[-5:] + "!"])  # the end is held back for it
            whole = await cluster.events(tokens(5, stopping=limits))
            accepted, before = whole[0].accepted, heard(whole, had)
            so_far = [pb.ResumedOutput(index=0, token_ids=output_tokens(before))]
            resume = pb.Resume(seed=accepted.seed, fingerprint=accepted.fingerprint, outputs=so_far)

            events = await cluster.events(tokens(5, stopping=limits, resume=resume))

            assert output_tokens(before) + output_tokens(events) == output_tokens(whole)
            assert text(before) + text(events) == text(whole) == unstopped
            assert events[0].accepted.seed == accepted.seed
            assert events[-1].finished.usage.completion_tokens == 40

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("resume", "problem"),
    [
        ({"outputs": []}, "resume.outputs must contain"),
        ({"outputs": [{"index": 2}]}, "distinct indices below 2"),
        ({"outputs": [{"index": 0}, {"index": 0}]}, "distinct indices below 2"),
        ({"outputs": [{"index": 0, "token_ids": [7] * 10}]}, "output 0 has 10 tokens, at most 9 are possible"),
        ({"outputs": [{"index": 0, "token_ids": [400]}]}, "token 0 of output 0 must be below 400"),
        ({"outputs": [{"index": 0}], "seed": 4}, r"seed must be resume.seed \(4\)"),
        ({"outputs": [{"index": 0}], "fingerprint": "cafe"}, "resume.fingerprint: no replica with fingerprint cafe"),
    ],
)
def test_a_resume_that_continues_nothing_is_refused_by_name(model: Path, resume: dict, problem: str) -> None:
    async def scenario() -> None:
        async with running(model) as cluster:
            fields = {"fingerprint": "feedbeef", "seed": 3, **resume}
            request = tokens(
                5,
                resume=pb.Resume(**fields),
                num_sequences=2,
                sampling=pb.SamplingParameters(seed=3),
                stopping=stopping(max_tokens=9),
            )
            with pytest.raises(grpc.aio.AioRpcError, match=problem) as caught:
                await cluster.events(request)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert not cluster.engine.submitted

    asyncio.run(scenario())


def test_calls_that_were_begun_at_one_gateway_go_on_at_another(model: Path) -> None:
    async def scenario() -> None:
        tokenizer = Tokenizer.load(model)
        assert tokenizer is not None
        call = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{}\n```<｜tool▁call▁end｜>"
        said = [*tokenizer.encode_part(f"so<｜tool▁calls▁begin｜>{call}\n{call}<｜tool▁calls▁end｜>"), EOS]
        tools = pb.Messages(messages=[pb.Message(role="user", content="go")], tools=[pb.Tool(name="add")])
        asked = pb.GenerateRequest(messages=tools, request_id="one")
        async with running(model, FakeEngine(lambda request, index: said, max_model_len=2048)) as cluster:
            whole = await cluster.events(asked)
            accepted = whole[0].accepted
            wanted = _gained(whole)
            assert wanted[0] == "so"
            assert [(one.name, one.arguments) for one in wanted[1].values()] == [("add", "{}")] * 2
            for cut in range(1, len(said)):
                heard = [one for one in whole if one.HasField("output")]
                first = _up_to(heard, cut)
                resume = pb.Resume(seed=accepted.seed, fingerprint=accepted.fingerprint)
                resume.outputs.add(index=0, token_ids=[n for one in first for n in one.output.token_ids])
                rest = await cluster.events(pb.GenerateRequest(messages=tools, request_id="one", resume=resume))
                assert _gained([*first, *rest]) == wanted, cut

    asyncio.run(scenario())


def _up_to(events: list[pb.GenerateResponse], tokens: int) -> list[pb.GenerateResponse]:
    """The first events, up to so many tokens."""
    sizes = list(itertools.accumulate(len(event.output.token_ids) for event in events))
    return [event for event, size in zip(events, sizes, strict=True) if size <= tokens]


def _gained(events: list[pb.GenerateResponse]) -> tuple[str, dict[int, pb.ToolCall]]:
    calls: dict[int, pb.ToolCall] = {}
    for event in events:
        for delta in event.output.tool_calls:
            one = calls.setdefault(delta.index, pb.ToolCall())
            one.id, one.name = one.id or delta.id, one.name or delta.name
            one.arguments += delta.arguments
    return "".join(event.output.text for event in events), calls
