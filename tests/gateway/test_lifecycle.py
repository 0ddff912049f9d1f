"""What happens to requests when something ends: a client, a leader, a replica, the controller, the gateway."""

import asyncio
from pathlib import Path

import grpc
import pytest
from fakes import FakeEngine
from gateway.harness import Cluster, eventually, pb, rest, running, stopping, tokens

from outrider.cluster.gateway.server import Gateway
from outrider.cluster.gateway.settings import GatewaySettings
from outrider.workers.serving.rpc.service import EngineServer
from outrider.workers.types.errors import OutriderError


async def _started(cluster: Cluster, **fields: object) -> "grpc.aio.UnaryStreamCall":
    """A call whose first token has come."""
    call = cluster.inference.Generate(tokens(5, **fields))
    assert (await call.read()).HasField("accepted")
    assert (await call.read()).HasField("output")
    return call


async def _until_available(cluster: Cluster, request: pb.GenerateRequest) -> list[pb.GenerateResponse]:
    """As a client does: UNAVAILABLE is safe to try again."""
    for _ in range(200):
        try:
            return await cluster.events(request)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            await asyncio.sleep(0.01)
    raise AssertionError("never available")


def test_cancelling_a_call_frees_its_sequences(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, FakeEngine(max_model_len=100_000)) as cluster:
            call = await _started(cluster, num_sequences=3)
            assert cluster.engine.live_outputs == 3

            call.cancel()

            await eventually(lambda: cluster.engine.live_outputs == 0)
            await eventually(lambda: cluster.gateway.live_requests == 0)

    asyncio.run(scenario())


@pytest.mark.parametrize("paused", [False, True])
def test_a_deadline_ends_the_call_and_frees_its_sequence(model: Path, paused: bool) -> None:
    async def scenario() -> None:
        async with running(model, FakeEngine(max_model_len=100_000)) as cluster:
            if paused:
                cluster.engine.pause()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await cluster.events(tokens(5), timeout=0.2)

            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await eventually(lambda: cluster.gateway.live_requests == 0)
            cluster.engine.go_on()
            await eventually(lambda: not cluster.engine.live)
            name, labels = "outrider_gateway_requests_total", {"status": "deadline_exceeded"}
            assert cluster.gateway.metrics.registry.get_sample_value(name, labels) == 1

    asyncio.run(scenario())


def test_a_request_that_waits_for_a_replica_when_its_gateway_leaves_may_go_on_at_another(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, FakeEngine(max_model_len=100_000), drain_grace_s=0.05) as cluster:
            call = await _started(cluster)
            await cluster.controller.end("r0", 1, "rank 1 died", pending=1)
            await eventually(lambda: not cluster.gateway.ready)

            await cluster.gateway.drain()

            (*_, last) = await rest(call)
            assert last.error.resumable
            assert "gateway shut down" in last.error.message

    asyncio.run(scenario())


class _OverContext:
    """Of a call that is over, as gRPC may show it to a writer before it cancels the handler."""

    def __init__(self, left_s: float | None, *, begun: bool) -> None:
        """`begun`: it was not over yet when its metadata was sent."""
        self._left_s, self._begun = left_s, begun

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def time_remaining(self) -> float | None:
        return self._left_s

    async def send_initial_metadata(self, metadata: object) -> None:
        if not self._begun:
            raise grpc.aio.InternalError("the batch failed")

    async def write(self, message: pb.GenerateResponse) -> None:
        raise grpc.aio.InternalError("the batch failed")


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(
    ("left_s", "status"),
    [(-0.1, "deadline_exceeded"), (0.01, "deadline_exceeded"), (9.0, "cancelled"), (None, "cancelled")],
)
def test_a_write_that_fails_since_the_call_is_over_ends_it_as_its_cancellation_would(
    model: Path, left_s: float | None, status: str, begun: bool
) -> None:
    async def scenario() -> None:
        async with running(model, FakeEngine(max_model_len=100_000)) as cluster:
            with pytest.raises(asyncio.CancelledError):
                await cluster.gateway.servicer.Generate(tokens(5), _OverContext(left_s, begun=begun))

            await eventually(lambda: not cluster.engine.live)
            assert cluster.gateway.live_requests == 0
            count = cluster.gateway.metrics.registry.get_sample_value
            assert count("outrider_gateway_requests_total", {"status": status}) == 1

    asyncio.run(scenario())


def test_a_replica_that_ends_gives_one_error_event_with_the_controllers_reason(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, FakeEngine(max_model_len=100_000)) as cluster:
            call = await _started(cluster)
            await asyncio.to_thread(cluster.leader.stop)
            await cluster.controller.end("r0", 1, "rank 1 (stage 1, layers 6..11) was killed by signal 9")

            events = await rest(call)

            assert [event.WhichOneof("event") for event in events if not event.HasField("output")] == ["error"]
            assert events[-1].error.message == (
                "replica r0 (generation 1) ended: rank 1 (stage 1, layers 6..11) was killed by signal 9; "
                "no replica with fingerprint feedbeef is left"
            )
            assert cluster.gateway.live_requests == 0
            assert not cluster.gateway.ready

    asyncio.run(scenario())


def test_a_replica_that_the_controller_ends_fails_its_requests_though_its_leader_says_nothing(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, FakeEngine(max_model_len=100_000)) as cluster:
            call = await _started(cluster)
            cluster.engine.pause()

            await cluster.controller.end("r0", 1, "rank 0 (stage 0, layers 0..5) is frozen")

            assert "rank 0 (stage 0, layers 0..5) is frozen" in (await rest(call))[-1].error.message
            cluster.engine.go_on()
            await eventually(lambda: not cluster.engine.live)

    asyncio.run(scenario())


def test_a_broken_stream_without_a_reason_names_the_leader(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, FakeEngine(max_model_len=100_000), reason_wait_s=0.1, resume_wait_s=0.1) as cluster:
            call = await _started(cluster)

            await asyncio.to_thread(cluster.leader.stop)

            message = (await rest(call))[-1].error.message
            assert "replica r0 (generation 1)" in message
            assert "leader (rank 0" in message
            assert "closed its connection" in message

    asyncio.run(scenario())


def test_an_engine_that_fails_says_why_itself(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, resume_wait_s=0.1) as cluster:
            cluster.engine.pause()
            call = cluster.inference.Generate(tokens(5))
            await call.read()

            cluster.engine.fail("rank 1 did not answer within 300 s in round 7")

            assert (await rest(call))[-1].error.message == (
                "rank 1 did not answer within 300 s in round 7; no replica could continue it within 0.1 s"
            )
            with pytest.raises(grpc.aio.AioRpcError) as late:
                await cluster.events(tokens(5))
            assert late.value.code() is grpc.StatusCode.UNAVAILABLE

    asyncio.run(scenario())


def test_a_leader_that_comes_back_is_used_again(model: Path) -> None:
    async def scenario() -> None:
        async with running(model) as cluster:
            port = int(cluster.leader_address.rpartition(":")[2])
            await asyncio.to_thread(cluster.leader.stop)
            await eventually(lambda: not cluster.gateway.ready)

            cluster.leader = EngineServer(cluster.engine, port=port)
            cluster.leader.start()

            await eventually(lambda: cluster.gateway.ready)
            assert (await cluster.events(tokens(5, stopping=stopping(max_tokens=1))))[-1].HasField("finished")
            await asyncio.to_thread(cluster.leader.stop)

    asyncio.run(scenario())


def test_a_new_generation_takes_over_while_the_old_one_finishes_its_requests(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, FakeEngine(max_model_len=100_000)) as cluster:
            old = await _started(cluster, stopping=stopping(max_tokens=900))
            engine = FakeEngine()
            leader = EngineServer(engine)

            await cluster.controller.publish(("r0", 2, f"127.0.0.1:{await asyncio.to_thread(leader.start)}"))
            while not engine.submitted:
                new = await _until_available(cluster, tokens(5, stopping=stopping(max_tokens=2)))

            assert new[-1].finished.usage.completion_tokens == 2
            assert (await rest(old))[-1].finished.usage.completion_tokens == 900
            await asyncio.to_thread(leader.stop)
            engine.close()

    asyncio.run(scenario())


def test_requests_go_where_the_fewest_are_live(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, FakeEngine(max_model_len=100_000)) as cluster:
            engine = FakeEngine(max_model_len=100_000)
            leader = EngineServer(engine)
            other = ("r1", 1, f"127.0.0.1:{await asyncio.to_thread(leader.start)}")
            await cluster.controller.publish(("r0", 1, cluster.leader_address), other)
            name = "outrider_gateway_ready_replicas"
            await eventually(lambda: cluster.gateway.metrics.registry.get_sample_value(name) == 2)

            calls = [await _started(cluster) for _ in range(6)]

            assert (len(cluster.engine.submitted), len(engine.submitted)) == (3, 3)
            for call in calls:
                call.cancel()
            await asyncio.to_thread(leader.stop)
            engine.close()

    asyncio.run(scenario())


def test_requests_go_on_while_the_controller_is_away_and_its_tables_are_heard_again_after(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, FakeEngine(max_model_len=100_000)) as cluster:
            call = await _started(cluster, stopping=stopping(max_tokens=50))
            await cluster.controller.stop()
            assert (await rest(call))[-1].HasField("finished")
            assert (await cluster.events(tokens(5, stopping=stopping(max_tokens=1))))[-1].HasField("finished")
            assert cluster.controller.watchers == 0

            await cluster.controller.start()

            await eventually(lambda: cluster.controller.watchers == 1)
            await cluster.controller.end("r0", 1, "gone")
            await eventually(lambda: not cluster.gateway.ready)

    asyncio.run(scenario())


def test_draining_refuses_what_is_new_and_finishes_what_runs(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, FakeEngine(max_model_len=100_000)) as cluster:
            call = await _started(cluster, stopping=stopping(max_tokens=200))

            drain = asyncio.create_task(cluster.gateway.drain())
            await asyncio.sleep(0.02)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await cluster.events(tokens(5))

            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "draining" in (caught.value.details() or "")
            assert (await rest(call))[-1].finished.usage.completion_tokens == 200
            await drain

    asyncio.run(scenario())


def test_what_does_not_finish_within_the_grace_of_a_drain_gets_an_error_event(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, FakeEngine(max_model_len=100_000), drain_grace_s=0.1) as cluster:
            call = await _started(cluster)

            drain = asyncio.create_task(cluster.gateway.drain())

            assert "gateway shut down" in (await rest(call))[-1].error.message
            await drain
            await eventually(lambda: not cluster.engine.live)

    asyncio.run(scenario())


def test_a_port_in_use_is_one_clear_error(model: Path) -> None:
    async def scenario() -> None:
        async with running(model) as cluster:
            second = Gateway(GatewaySettings(controller=cluster.controller.address, port=cluster.gateway.port))

            with pytest.raises(OutriderError, match=f"cannot listen on 127.0.0.1:{cluster.gateway.port}"):
                await second.start()
            await second.close()

    asyncio.run(scenario())
