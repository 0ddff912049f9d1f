"""A client's request outlives its gateway: it goes on at the next that answers at the address, with the same text."""

import asyncio
import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest
from fakes import FakeEngine
from gateway.harness import Cluster, eventually, pb, rest, running, stopping, tokens

from outrider import AsyncClient, Client
from outrider.cluster.api.errors import GenerationFailedError, UnavailableError
from outrider.cluster.api.generation import Accepted, Event, Failed, Finished, GenerateCall, Output, TokenPrompt
from outrider.cluster.client.resume import PATIENCE_S, ResumableCall
from outrider.cluster.gateway.server import Gateway
from outrider.cluster.gateway.settings import GatewaySettings
from outrider.proto import inference_pb2_grpc
from outrider.workers.text.assembler import RequestAssembler, Usage
from outrider.workers.text.outputs import Logprob
from outrider.workers.types.errors import OverloadedError
from outrider.workers.types.requests.request import FinishReason, OutputSoFar
from outrider.workers.types.requests.sampling_params import SamplingParams

LONG = 100_000


async def next_gateway(cluster: Cluster) -> Gateway:
    """Another, where the first was."""
    gateway = Gateway(dataclasses.replace(cluster.gateway.settings, port=cluster.gateway.port))
    await gateway.start()
    return gateway


@pytest.mark.parametrize("end", ["drained", "gone"])
@pytest.mark.parametrize("outputs", [1, 3])
def test_a_stream_whose_gateway_ends_goes_on_at_the_next(model: Path, end: str, outputs: int) -> None:
    async def scenario() -> None:
        async with running(model, FakeEngine(max_model_len=LONG), drain_grace_s=0.05) as cluster:
            client = AsyncClient(cluster.address)
            asked = {"token_ids": [5], "max_tokens": 120, "n": outputs, "temperature": 0.5}
            whole = await client.generate(**asked)
            cluster.engine.stall_after(100)
            events: list[Event] = []
            async for event in client.stream(**asked):
                events.append(event)
                if len(events) == 12:
                    await (cluster.gateway.drain() if end == "drained" else cluster.gateway.close())
                    cluster.gateway = await next_gateway(cluster)
                    cluster.engine.stall_after(LONG)

            said = [
                [t for e in events if isinstance(e, Output) and e.index == n for t in e.token_ids]
                for n in range(outputs)
            ]
            text = ["".join(e.text for e in events if isinstance(e, Output) and e.index == n) for n in range(outputs)]
            assert said == [output.token_ids for output in whole.outputs]
            assert text == [output.text for output in whole.outputs]
            assert [type(event) for event in events].count(Accepted) == 1
            assert sorted(e.index for e in events if isinstance(e, Finished)) == list(range(outputs))
            await eventually(lambda: not cluster.engine.live)
            await client.close()

    asyncio.run(scenario())


def test_a_client_without_patience_hears_that_its_gateway_left(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, FakeEngine(max_model_len=LONG), drain_grace_s=0.05) as cluster:
            client = AsyncClient(cluster.address, patience_s=0)
            stream = client.stream(token_ids=[5])
            await anext(stream)
            await asyncio.sleep(0.05)

            drain = asyncio.create_task(cluster.gateway.drain())

            with pytest.raises(GenerationFailedError, match="gateway shut down"):
                async for _ in stream:
                    pass
            await drain
            await client.close()

    asyncio.run(scenario())


def test_a_gateway_that_does_not_come_back_is_unavailable_when_patience_ends(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, FakeEngine(max_model_len=LONG)) as cluster:
            client = AsyncClient(cluster.address, patience_s=0.5)
            stream = client.stream(token_ids=[5])
            await anext(stream)
            await anext(stream)
            await cluster.gateway.close()

            with pytest.raises((UnavailableError, GenerationFailedError)):
                async for _ in stream:
                    pass
            await client.close()

    asyncio.run(scenario())


def a_call(outputs: int = 2) -> ResumableCall:
    call = GenerateCall(prompt=TokenPrompt((5,)), params=SamplingParams(n=outputs))
    return ResumableCall(call, patience_s=10, now=0.0, draw=lambda: 0.5)


ACCEPTED = Accepted(request_id="r", seed=3, prompt_tokens=1, fingerprint="f")


def test_received_tokens_are_resumed_and_finished_outputs_are_left_out() -> None:
    request = a_call()
    assert request.call.resume is None

    for event in (
        ACCEPTED,
        Output(index=1, token_ids=(7, 8)),
        Output(index=0, token_ids=(6,)),
        Output(index=1, token_ids=(9,)),
        Finished(index=0, reason=FinishReason.STOP),
    ):
        assert request.receive(event, 1.0) is event

    resume = request.call.resume
    assert resume is not None
    assert (resume.seed, resume.fingerprint, request.call.request_id) == (3, "f", "r")
    assert resume.outputs == (OutputSoFar(index=1, token_ids=(7, 8, 9)),)
    assert request.receive(ACCEPTED, 2.0) is None, "the caller has it already"


def test_only_an_accepted_request_is_asked_again_and_only_for_a_while() -> None:
    request = a_call()
    left = GenerationFailedError("the gateway failed")
    with pytest.raises(GenerationFailedError) as caught:
        request.receive(Failed(message="the gateway shut down", resumable=True), 0.0)
    assert not request.may_retry(caught.value, 1.0)

    request.receive(ACCEPTED, 1.0)
    request.receive(Output(index=0, token_ids=(6,)), 5.0)

    assert request.may_retry(caught.value, 14.9)
    assert not request.may_retry(caught.value, 15.1)
    assert not request.may_retry(left, 5.0)
    pauses = [request.pause_s(left) for _ in range(8)]
    assert pauses == sorted(pauses)
    request.receive(Output(index=0, token_ids=(6,)), 6.0)
    assert request.pause_s(left) == pauses[0]


def test_usage_counts_outputs_that_ended_at_an_earlier_gateway() -> None:
    request = a_call(outputs=3)
    request.receive(ACCEPTED, 0.0)
    request.receive(Output(index=2, token_ids=(6, 7, 8)), 1.0)
    request.receive(Finished(index=2, reason=FinishReason.STOP), 1.0)
    request.receive(Output(index=0, token_ids=(5,)), 1.0)

    request.receive(ACCEPTED, 2.0)  # at the next
    request.receive(Output(index=0, token_ids=(9,)), 2.0)
    request.receive(Finished(index=0, reason=FinishReason.STOP), 2.0)
    request.receive(Output(index=1, token_ids=(4,)), 2.0)
    last = request.receive(Finished(index=1, reason=FinishReason.STOP, usage=Usage(completion_tokens=3)), 3.0)

    assert isinstance(last, Finished)
    assert last.usage == Usage(completion_tokens=6)


def test_a_stream_that_breaks_behind_its_last_event_is_done() -> None:
    request = a_call()
    request.receive(ACCEPTED, 0.0)
    request.receive(Finished(index=1, reason=FinishReason.STOP), 1.0)
    assert not request.finished

    request.receive(Finished(index=0, reason=FinishReason.STOP), 1.0)

    assert request.finished


@pytest.mark.parametrize("plain", [False, True])
def test_a_client_that_received_every_end_ignores_how_its_gateway_ends(plain: bool) -> None:
    """The gateway is killed between the last event and the call's status."""
    wire_events = [
        pb.GenerateResponse(accepted=pb.Accepted(request_id="r", seed=3, fingerprint="f")),
        pb.GenerateResponse(output=pb.Output(index=0, token_ids=[7])),
        pb.GenerateResponse(finished=pb.Finished(index=0, reason=pb.FINISH_REASON_LENGTH, usage=pb.Usage())),
    ]

    class Killed(inference_pb2_grpc.InferenceServiceServicer):
        async def Generate(self, request, context):  # noqa: ANN001, ANN202, N802
            for event in wire_events:
                yield event
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    def ask(address: str) -> list[Event]:
        with Client(address) as client:
            return list(client.stream(token_ids=[5]))

    async def scenario() -> None:
        server = grpc.aio.server()
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(Killed(), server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        if plain:
            events = await asyncio.to_thread(ask, address)
        else:
            async with AsyncClient(address) as client:
                events = [event async for event in client.stream(token_ids=[5])]
        await server.stop(0)

        assert [type(event) for event in events] == [Accepted, Output, Finished]

    asyncio.run(scenario())


def test_log_probabilities_of_the_prompt_that_come_again_are_not_told_again() -> None:
    request = a_call()
    places = [{n: Logprob(logprob=-0.5, rank=1, decoded_token="x")} for n in range(9)]
    request.receive(ACCEPTED, 0.0)
    told = [request.receive(Output(index=0, prompt_logprobs=tuple(places[:4])), 1.0)]

    for repeat in range(2):  # two gateways in a row are lost between their messages
        request.receive(ACCEPTED, 2.0)
        told.append(request.receive(Output(index=0, prompt_logprobs=tuple(places[:3])), 2.0))
        told.append(request.receive(Output(index=0, prompt_logprobs=tuple(places[3 : 6 + repeat])), 2.0))
    told.append(request.receive(Output(index=0, prompt_logprobs=tuple(places[7:])), 3.0))

    assert [place for event in told if isinstance(event, Output) for place in event.prompt_logprobs] == places
    assert told[1] is None, "all of it had come before"


def test_an_accepted_request_outlasts_a_gateways_own_patience() -> None:
    assert GatewaySettings(controller="c:1").resume_wait_s < PATIENCE_S


def test_many_resumed_tokens_are_detokenized_outside_the_event_loop(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    original = RequestAssembler.resume_after

    def noted(self: RequestAssembler, outputs: Sequence[OutputSoFar]) -> None:
        threads.append(threading.current_thread().name)
        original(self, outputs)

    monkeypatch.setattr(RequestAssembler, "resume_after", noted)

    async def scenario() -> None:
        async with running(model, FakeEngine(max_model_len=LONG)) as cluster, AsyncClient(cluster.address) as client:
            whole = await client.generate(token_ids=[5], max_tokens=400, seed=3)
            for count in (9, 390):
                outputs = [pb.ResumedOutput(index=0, token_ids=whole.token_ids[:count])]
                resume = pb.Resume(seed=3, fingerprint=whole.fingerprint, outputs=outputs)

                events = await cluster.events(tokens(5, stopping=stopping(max_tokens=400), resume=resume))

                assert [token for event in events for token in event.output.token_ids] == whole.token_ids[count:]

    asyncio.run(scenario())

    assert threads[0] == threading.main_thread().name
    assert threads[1].startswith("prepare")


def test_a_full_gateway_takes_a_stream_that_another_lost(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, FakeEngine(max_model_len=LONG), max_live_requests=1) as cluster:
            client = AsyncClient(cluster.address, patience_s=0)
            whole = await client.generate(token_ids=[5], max_tokens=40, seed=3)
            other = client.stream(token_ids=[7])
            await anext(other)
            resumed = tokens(
                5,
                request_id="r",
                stopping=stopping(max_tokens=40),
                resume=pb.Resume(
                    seed=3,
                    fingerprint=whole.fingerprint,
                    outputs=[pb.ResumedOutput(index=0, token_ids=whole.token_ids[:9])],
                ),
            )

            events = await cluster.events(resumed)

            said = [token for event in events for token in event.output.token_ids]
            assert said == whole.token_ids[9:]
            with pytest.raises(OverloadedError):
                await client.generate(token_ids=[5])
            await client.close()

    asyncio.run(scenario())


def test_a_resumed_request_takes_the_place_of_its_old_self(model: Path) -> None:
    """Which the gateway takes for live: it has not noticed that its client is gone."""

    async def scenario() -> None:
        async with running(model, FakeEngine(max_model_len=LONG)) as cluster:
            old = cluster.inference.Generate(tokens(5, request_id="r"))
            accepted = (await old.read()).accepted
            said = list((await old.read()).output.token_ids)
            resume = pb.Resume(
                seed=accepted.seed,
                fingerprint=accepted.fingerprint,
                outputs=[pb.ResumedOutput(index=0, token_ids=said)],
            )

            new = cluster.inference.Generate(tokens(5, request_id="r", resume=resume, stopping=stopping(max_tokens=30)))

            assert (await new.read()).HasField("accepted")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await rest(old)
            assert caught.value.code() is grpc.StatusCode.ABORTED
            more = [token for event in await rest(new) for token in event.output.token_ids]
            assert len(said) + len(more) == 30
            await eventually(lambda: not cluster.engine.live and cluster.gateway.live_requests == 0)

    asyncio.run(scenario())
