"""What is wrong with a request is a status that names it, before any event."""

import asyncio
from pathlib import Path

import grpc
import pytest
from fakes import FakeEngine
from gateway.harness import Cluster, eventually, pb, rest, running, stopping, tokens
from google.rpc import error_details_pb2
from grpc_status import rpc_status

Code = grpc.StatusCode
SAMPLING, STOPPING = "sampling", "stopping"


async def _refusal(cluster: Cluster, request: pb.GenerateRequest) -> grpc.aio.AioRpcError:
    call = cluster.inference.Generate(request)
    with pytest.raises(grpc.aio.AioRpcError) as caught:  # at the first read: no event comes before it
        await call.read()
    return caught.value


def _sampling(**fields: object) -> pb.GenerateRequest:
    return tokens(5, sampling=pb.SamplingParameters(**fields))


def _stopping(**fields: object) -> pb.GenerateRequest:
    return tokens(5, stopping=stopping(**fields))


def _speculating(mode: int, **fields: object) -> pb.GenerateRequest:
    return tokens(5, speculation=pb.SpeculationOptions(mode=mode, **fields))


def _grammar(source: str) -> pb.GenerateRequest:
    return tokens(5, structured_output=pb.StructuredOutput(grammar=source))


_RULES = "".join(f"r{n}: r{n + 1}\n" for n in range(4000))  # the grammar library's stack does not hold these
_PATTERNS = " & ".join(f"/(.*a.{{{n}}}.*)/" for n in range(3, 30))  # a millisecond to validate, for ever to compile
BAD_REQUESTS = [
    ("prompt, token_ids or messages", pb.GenerateRequest()),
    ("prompt must not be empty", pb.GenerateRequest(prompt="")),
    ("token_ids must not be empty", tokens()),
    ("messages must not be empty", pb.GenerateRequest(messages=pb.Messages())),
    ("prompt has", pb.GenerateRequest(prompt="1 2 3 4 5 6 7 8 9 " * 40)),
    ("token_ids has 256 tokens", tokens(*[5] * 256)),
    ("token_ids[1]", tokens(5, 400)),
    ("token_ids[0]", tokens(2**32 - 1)),
    ("temperature", _sampling(temperature=-0.1)),
    ("temperature", _sampling(temperature=float("nan"))),
    ("top_p", _sampling(top_p=0)),
    ("top_k", _sampling(top_k=-1)),
    ("min_p", _sampling(min_p=1.5)),
    ("presence_penalty", _sampling(presence_penalty=2.5)),
    ("frequency_penalty", _sampling(frequency_penalty=float("inf"))),
    ("repetition_penalty", _sampling(repetition_penalty=-1)),
    ("logit_bias", _sampling(logit_bias={400: float("nan")})),
    ("logit_bias must be in", _sampling(logit_bias={400: 1.0})),
    ("allowed_token_ids", _sampling(allowed_token_ids=[3, 400])),
    ("allowed_token_ids", _sampling(allowed_token_ids=[-1])),
    ("bad_words", _sampling(bad_words=["a", ""])),
    ("bad_words_token_ids", _sampling(bad_words_token_ids=[pb.TokenIds(ids=[400])])),
    ("prompt_logprobs", tokens(5, response=pb.ResponseOptions(prompt_logprobs=21))),
    ("max_tokens", _stopping(max_tokens=0)),
    ("max_tokens", _stopping(max_tokens=-5)),
    ("min_tokens", _stopping(min_tokens=-1)),
    ("min_tokens", _stopping(min_tokens=9, max_tokens=8)),
    ("stop must be", _stopping(stop=["a", ""])),
    ("stop_token_ids", _stopping(stop_token_ids=[400])),
    ("stop_token_ids", _stopping(stop_token_ids=[-1])),
    ("logprobs", tokens(5, response=pb.ResponseOptions(logprobs=21))),
    ("num_sequences", tokens(5, num_sequences=0)),
    ("num_sequences", tokens(5, num_sequences=4000)),
    ("num_sequences", tokens(5, num_sequences=2, sampling=pb.SamplingParameters(temperature=0))),
    ("max_draft_tokens", _speculating(pb.SPECULATION_MODE_FIXED)),
    ("max_draft_tokens", _speculating(pb.SPECULATION_MODE_FIXED, max_draft_tokens=17)),
    ("max_draft_tokens", _speculating(pb.SPECULATION_MODE_AUTO, max_draft_tokens=2)),
    ("speculation mode", _speculating(9)),
    ("structured_outputs cannot be followed", tokens(5, structured_output=pb.StructuredOutput(regex="("))),
    ("structured_outputs cannot be followed", tokens(5, structured_output=pb.StructuredOutput(json_schema="{"))),
    (
        "structured_outputs cannot be followed: it is nested too deeply",
        tokens(5, structured_output=pb.StructuredOutput(json_schema="[" * 30_000 + "]" * 30_000)),
    ),
    ("structured_outputs cannot be followed", _grammar("start: r0\n" + _RULES + 'r4000: "a"')),
    ("structured_outputs cannot be followed", _grammar(f"start: T\nT: {_PATTERNS}")),
    ("structured_outputs must have exactly one", tokens(5, structured_output=pb.StructuredOutput())),
    ("structured_outputs choice", tokens(5, structured_output=pb.StructuredOutput(choice=pb.Choices()))),
    ("resume.outputs must contain an unfinished output", tokens(5, resume=pb.Resume(seed=1, fingerprint="feedbeef"))),
    ("drafter must be one of auto, mtp, lookup", _speculating(pb.SPECULATION_MODE_AUTO, drafter="ngram")),
    ("drafter must be one that this engine loaded", _speculating(pb.SPECULATION_MODE_AUTO, drafter="draft_model")),
    ("drafter goes with speculation, which is off", _speculating(pb.SPECULATION_MODE_OFF, drafter="mtp")),
]


def test_every_wrong_field_is_an_invalid_argument_that_names_it(model: Path) -> None:
    async def scenario() -> None:
        async with running(model) as cluster:
            for named, request in BAD_REQUESTS:
                error = await _refusal(cluster, request)
                assert (error.code(), named in (error.details() or "")) == (Code.INVALID_ARGUMENT, True), (
                    named,
                    error.details(),
                )
            assert cluster.engine.submitted == []
            assert cluster.gateway.live_requests == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("mode", [pb.SPECULATION_MODE_AUTO, pb.SPECULATION_MODE_FIXED])
def test_drafts_are_refused_by_an_engine_that_loads_no_drafter(model: Path, mode: int) -> None:
    async def scenario() -> None:
        async with running(model, FakeEngine(speculation="off")) as cluster:
            draft_tokens = {"max_draft_tokens": 2} if mode == pb.SPECULATION_MODE_FIXED else {}
            error = await _refusal(cluster, _speculating(mode, **draft_tokens))

            assert error.code() is Code.INVALID_ARGUMENT
            assert "speculation" in (error.details() or "")
            off = tokens(
                5, speculation=pb.SpeculationOptions(mode=pb.SPECULATION_MODE_OFF), stopping=stopping(max_tokens=1)
            )
            assert await cluster.events(off)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("named", "sent"),
    [
        ("prompt needs a tokenizer", pb.GenerateRequest(prompt="hello")),
        ("messages needs a tokenizer", pb.GenerateRequest(messages=pb.Messages(messages=[pb.Message(role="user")]))),
        ("stop needs a tokenizer", _stopping(stop=["x"])),
    ],
)
def test_text_is_refused_where_there_is_no_tokenizer(bare_model: Path, named: str, sent: pb.GenerateRequest) -> None:
    async def scenario() -> None:
        async with running(bare_model) as cluster:
            error = await _refusal(cluster, sent)

            assert error.code() is Code.INVALID_ARGUMENT
            assert named in (error.details() or "")

    asyncio.run(scenario())


def test_the_id_of_a_live_request_is_refused_and_free_again_after_it(model: Path) -> None:
    async def scenario() -> None:
        async with running(model) as cluster:
            cluster.engine.pause()
            first = cluster.inference.Generate(tokens(5, request_id="same", stopping=stopping(max_tokens=2)))
            assert (await first.read()).HasField("accepted")

            error = await _refusal(cluster, tokens(5, request_id="same"))
            assert error.code() is Code.ALREADY_EXISTS
            assert "request_id 'same'" in (error.details() or "")

            cluster.engine.go_on()
            await rest(first)
            again = tokens(5, request_id="same", stopping=stopping(max_tokens=2))
            assert (await cluster.events(again))[-1].HasField("finished")

    asyncio.run(scenario())


def test_an_id_may_be_used_again_at_once_after_its_request_was_cancelled(model: Path) -> None:
    async def scenario() -> None:
        async with running(model) as cluster:
            for _ in range(30):
                call = cluster.inference.Generate(tokens(5, request_id="same"))
                await call.read()
                call.cancel()
                await eventually(lambda: cluster.gateway.live_requests == 0)
            events = await cluster.events(tokens(7, request_id="same", stopping=stopping(max_tokens=3)))

            assert [token_id for event in events for token_id in event.output.token_ids] == [107, 108, 109]

    asyncio.run(scenario())


def _retry_after_s(error: grpc.aio.AioRpcError) -> float:
    status = rpc_status.from_call(error)
    retry = error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(retry)
    return retry.retry_delay.ToMilliseconds() / 1000


def test_more_live_requests_than_the_gateway_takes_are_refused_with_a_time_to_retry(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, max_live_requests=2) as cluster:
            cluster.engine.pause()
            calls = [cluster.inference.Generate(tokens(5)) for _ in range(2)]
            for call in calls:
                await call.read()

            error = await _refusal(cluster, tokens(5))

            assert error.code() is Code.RESOURCE_EXHAUSTED
            assert _retry_after_s(error) > 0
            calls[0].cancel()
            await eventually(lambda: cluster.gateway.live_requests == 1)
            third = cluster.inference.Generate(tokens(5))
            assert (await third.read()).HasField("accepted")
            calls[1].cancel()
            third.cancel()

    asyncio.run(scenario())


def test_prompt_tokens_count_as_queued_until_the_first_token_comes(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, max_queued_tokens=100) as cluster:
            cluster.engine.pause()
            long = tokens(*[5] * 90)
            first = cluster.inference.Generate(long)
            await first.read()

            error = await _refusal(cluster, tokens(*[5] * 20))
            assert error.code() is Code.RESOURCE_EXHAUSTED
            assert _retry_after_s(error) > 0

            cluster.engine.go_on()
            assert (await first.read()).HasField("output")
            second = cluster.inference.Generate(long)
            assert (await second.read()).HasField("accepted")
            first.cancel()
            second.cancel()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "service", ["InferenceService/Generate", "ClusterService/GetStatus", "ClusterService/WatchStatus"]
)
def test_bytes_that_are_no_request_are_an_invalid_argument(model: Path, service: str) -> None:
    async def scenario() -> None:
        async with running(model) as cluster:
            kind = cluster.channel.unary_unary if service.endswith("GetStatus") else cluster.channel.unary_stream
            call = kind(f"/outrider.v1.{service}")(b"\xff\xff")
            with pytest.raises(grpc.aio.AioRpcError, match="cannot be parsed") as caught:
                await (call if service.endswith("GetStatus") else call.read())
            assert caught.value.code() is Code.INVALID_ARGUMENT

    asyncio.run(scenario())


def test_without_a_ready_replica_requests_are_unavailable(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, ready=False, max_queue_wait_s=0) as cluster:
            error = await _refusal(cluster, tokens(5))
            assert (error.code(), error.details()) == (Code.UNAVAILABLE, "no replica is ready: try again later")

            await cluster.controller.publish(("r0", 1, cluster.leader_address))
            await eventually(lambda: cluster.gateway.ready)
            assert await cluster.events(_stopping(max_tokens=1))

            await cluster.controller.publish(("r0", 1, cluster.leader_address), draining=True)
            await eventually(lambda: not cluster.gateway.ready)
            error = await _refusal(cluster, tokens(5))
            assert (error.code(), error.details()) == (Code.UNAVAILABLE, "the cluster is draining")

    asyncio.run(scenario())
