"""Many clients at once, and slow ones: nothing leaks, and no client waits for another."""

import asyncio
import random
from pathlib import Path

import grpc
from fakes import FakeEngine
from gateway.harness import Cluster, eventually, pb, rest, running, stopping, tokens

from outrider.proto import inference_pb2_grpc

STREAMS = 200
TOKENS = 200_000


async def _visit(cluster: Cluster, number: int, dice: random.Random) -> str:
    """One client: it stays to the end, leaves after some events, or has a deadline. How it ended."""
    fate = dice.choice(("stay", "leave", "deadline"))
    outputs = dice.randint(1, 3)
    request = tokens(number % 200 + 10, num_sequences=outputs, stopping=stopping(max_tokens=dice.randint(1, 40)))
    call = cluster.inference.Generate(request, timeout=dice.uniform(0.01, 0.4) if fate == "deadline" else None)
    try:
        if fate == "leave":
            for _ in range(dice.randint(0, 10)):
                if await call.read() is grpc.aio.EOF:
                    break
            call.cancel()
            return "left"
        events = await rest(call)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    _check(events, number % 200 + 10, outputs, request.stopping.max_tokens)
    return "stayed"


def _check(events: list[pb.GenerateResponse], prompt: int, outputs: int, max_tokens: int) -> None:
    assert sorted(event.finished.index for event in events if event.HasField("finished")) == list(range(outputs))
    for index in range(outputs):
        own = [event.output for event in events if event.HasField("output") and event.output.index == index]
        token_ids = [token_id for output in own for token_id in output.token_ids]
        assert token_ids == [100 + (prompt + index + step) % 100 for step in range(max_tokens)]


def test_two_hundred_streams_with_random_cancels_leave_nothing_behind(model: Path) -> None:
    async def scenario() -> None:
        dice = random.Random(7)
        most = 3 * STREAMS  # so no request waits, or is refused because its deadline is before its turn
        engine = FakeEngine(round_s=0.005, per_round=lambda given: 1 + given % 3, max_num_seqs=most)
        async with running(model, engine, max_live_requests=most) as cluster:
            tasks_before = len(asyncio.all_tasks())

            fates = await asyncio.gather(*(_visit(cluster, number, dice) for number in range(STREAMS)))

            assert set(fates) >= {"stayed", "left", "DEADLINE_EXCEEDED"}
            assert set(fates) <= {"stayed", "left", "DEADLINE_EXCEEDED"}
            await eventually(lambda: cluster.gateway.live_requests == 0)
            await eventually(lambda: not engine.live)
            await eventually(lambda: len(asyncio.all_tasks()) <= tasks_before)
            sample = cluster.gateway.metrics.registry.get_sample_value
            assert sample("outrider_gateway_live_requests") == 0
            assert sample("outrider_gateway_queued_tokens") == 0
            statuses = ("ok", "cancelled", "deadline_exceeded")
            ended = [sample("outrider_gateway_requests_total", {"status": one}) or 0 for one in statuses]
            assert ended[0] >= fates.count("stayed")
            assert sum(ended) <= STREAMS
            assert engine.largest_batch > 20

    asyncio.run(scenario())


def test_a_slow_client_delays_no_other_and_receives_everything(model: Path) -> None:
    async def scenario() -> None:
        engine = FakeEngine(max_model_len=2 * TOKENS, round_s=0.0005, per_round=lambda given: 100)
        async with running(model, engine) as cluster:
            narrow = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 0)]  # little fits in between
            channel = grpc.aio.insecure_channel(cluster.address, options=narrow)
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            slow = stub.Generate(tokens(5, stopping=stopping(max_tokens=TOKENS)))
            await slow.read()

            others = await asyncio.gather(
                *(cluster.events(tokens(6, stopping=stopping(max_tokens=400))) for _ in range(20))
            )
            assert all(events[-1].finished.usage.completion_tokens == 400 for events in others)
            await eventually(lambda: not engine.live)
            assert cluster.gateway.live_requests == 1

            events = await rest(slow)

            token_ids = [token_id for event in events for token_id in event.output.token_ids]
            assert token_ids == [100 + (5 + step) % 100 for step in range(TOKENS)]
            assert len(events) < TOKENS / 100
            await channel.close()

    asyncio.run(scenario())
