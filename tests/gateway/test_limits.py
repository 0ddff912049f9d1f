"""What a single request may ask of a gateway: each limit refuses by the field's name, before anything is built."""

import asyncio
from pathlib import Path

import grpc
import pytest
from fakes import FakeEngine
from gateway.harness import pb, running, stopping, tokens

from outrider import AsyncClient
from outrider.cluster.api.errors import InvalidRequestError
from outrider.cluster.gateway.requests.limits import RequestLimits

SMALL = RequestLimits(
    max_message_bytes=16_384,
    max_prompt_tokens=8,
    max_stop_strings=2,
    max_stop_token_ids=2,
    max_logit_bias=2,
    max_allowed_token_ids=6000,
    max_schema_bytes=64,
)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (tokens(5, stopping=stopping(stop=["a", "b", "c"])), "stop has 3 entries, and this gateway accepts at most 2"),
        (tokens(5, stopping=stopping(stop=["x" * 1025])), "stop has length 1025"),
        (tokens(5, stopping=stopping(stop_token_ids=[1, 2, 3])), "stop_token_ids has 3 entries"),
        (tokens(5, sampling=pb.SamplingParameters(logit_bias={1: 1, 2: 1, 3: 1})), "logit_bias has 3 entries"),
        (tokens(5, structured_output=pb.StructuredOutput(json_schema="x" * 65)), "structured_output has length"),
        (tokens(5, sampling=pb.SamplingParameters(bad_words=["x" * 257])), "bad_words has length 257"),
        (tokens(5, sampling=pb.SamplingParameters(bad_words=["x"] * 257)), "bad_words has 257 entries"),
        (tokens(5, sampling=pb.SamplingParameters(allowed_token_ids=[5] * 7000)), "allowed_token_ids has 7000 entries"),
        (tokens(5, request_id="x" * 257), "request_id has length 257"),
        (tokens(*range(5, 14)), "token_ids has 9 tokens, and this gateway accepts at most 8"),
    ],
)
def test_a_request_that_asks_for_too_much_is_refused_by_field(
    model: Path, request_: pb.GenerateRequest, field: str
) -> None:
    async def scenario() -> None:
        async with running(model, limits=SMALL) as cluster:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await cluster.events(request_)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert field in (caught.value.details() or "")
            assert cluster.engine.submitted == []

    asyncio.run(scenario())


def test_what_is_just_within_the_limits_is_served(model: Path) -> None:
    request = tokens(
        *range(5, 13),
        request_id="x" * 256,
        stopping=stopping(max_tokens=2, stop=["zz", "y" * 1024], stop_token_ids=[1]),
    )

    async def scenario() -> None:
        async with running(model, limits=SMALL) as cluster:
            assert (await cluster.events(request))[-1].HasField("finished")

    asyncio.run(scenario())


def test_a_message_that_is_too_large_is_refused_unread_and_the_client_says_so(model: Path) -> None:
    async def scenario() -> None:
        engine = FakeEngine(max_model_len=10_000)
        async with running(model, engine, limits=SMALL) as cluster, AsyncClient(cluster.address) as client:
            with pytest.raises(InvalidRequestError, match="larger than the gateway accepts"):
                await client.generate("x" * 20_000, max_tokens=2)
            await client.generate(token_ids=[5], max_tokens=2)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_message_bytes", 10), ("max_prompt_tokens", 0), ("max_stop_strings", -1), ("max_schema_bytes", -1)],
)
def test_a_limit_that_cannot_be_is_refused_by_name(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=name):
        RequestLimits(**{name: value})
