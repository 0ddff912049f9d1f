"""Client and AsyncClient against a real gateway."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from fakes import FakeEngine
from gateway.harness import Cluster, eventually, running

from outrider.cluster.api.errors import (
    DeadlineExceededError,
    DuplicateRequestError,
    GenerationFailedError,
    InvalidRequestError,
    UnavailableError,
)
from outrider.cluster.api.generation import Accepted, Finished, Output
from outrider.cluster.client.async_client import AsyncClient
from outrider.cluster.client.client import Client
from outrider.workers.types.errors import OverloadedError
from outrider.workers.types.requests.request import FinishReason
from outrider.workers.types.requests.sampling_params import SamplingParams

T = TypeVar("T")


async def _in_thread(cluster: Cluster, use: Callable[[Client], T]) -> T:
    """The plain client blocks, and the gateway lives on this loop."""

    def run() -> T:
        with Client(cluster.address) as client:
            return use(client)

    return await asyncio.to_thread(run)


def test_a_whole_answer_has_tokens_text_reason_and_usage(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, FakeEngine(per_round=lambda given: 2)) as cluster:
            answer = await _in_thread(cluster, lambda c: c.generate("the quick", max_tokens=5, seed=7, temperature=0))

            assert len(answer.token_ids) == 5
            assert answer.text
            assert (answer.finish_reason, answer.stop_reason, answer.seed) == ("length", None, 7)
            assert (answer.usage.completion_tokens, answer.usage.rounds) == (5, 3)
            assert answer.fingerprint == "feedbeef"
            assert answer.prompt_tokens == len(cluster.engine.submitted[0].prompt_token_ids)

    asyncio.run(scenario())


def test_every_sampling_parameter_arrives_at_the_engine(model: Path) -> None:
    params = SamplingParams(
        n=2,
        temperature=0.7,
        top_p=0.9,
        top_k=5,
        min_p=0.1,
        seed=-(2**63),
        max_tokens=3,
        min_tokens=1,
        stop=["zz"],
        stop_token_ids=[3],
        ignore_eos=True,
        logprobs=1,
        skip_special_tokens=False,
        include_stop_str_in_output=True,
        speculation=4,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.25,
        logit_bias={7: -100.0},
        allowed_token_ids=[*range(100, 300)],
        bad_words_token_ids=[[9, 8]],
        prompt_logprobs=0,
        structured_outputs={"json": '{"type": "array"}', "disable_any_whitespace": True},  # type: ignore[arg-type]  # a mapping
    )

    async def scenario() -> None:
        async with running(model) as cluster, AsyncClient(cluster.address) as client:
            answer = await client.generate(token_ids=[5, 6], params=params, request_id="mine")
            await client.generate(token_ids=[5, 6], params=SamplingParams(speculation="off"))
            await client.generate(
                messages=[{"role": "user", "content": "hi"}], params=SamplingParams(speculation="auto")
            )

            arrived = [request.params for request in cluster.engine.submitted]
            assert SamplingParams.from_json(arrived[0].to_json()) == SamplingParams.from_json(params.to_json())
            assert [one.speculation for one in arrived[1:]] == ["off", "auto"]
            assert answer.request_id == "mine"
            assert [len(output.logprobs) for output in answer.outputs] == [3, 3]
            assert len(answer.outputs) == 2
            assert [list(entry) for entry in answer.prompt_logprobs] == [[6]]

    asyncio.run(scenario())


def test_without_params_max_tokens_is_the_models_length_and_with_them_it_is_theirs(model: Path) -> None:
    async def scenario() -> None:
        engine = FakeEngine(max_model_len=40, per_round=lambda given: 8)
        async with running(model, engine) as cluster, AsyncClient(cluster.address) as client:
            assert len((await client.generate(token_ids=[5])).token_ids) == 39
            assert len((await client.generate(token_ids=[5], params=SamplingParams())).token_ids) == 16

    asyncio.run(scenario())


def test_a_stream_gives_typed_events(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, FakeEngine(per_round=lambda given: 3)) as cluster:
            events = await _in_thread(
                cluster, lambda c: list(c.stream(token_ids=[5], max_tokens=6, speculation_detail=True))
            )

            assert isinstance(events[0], Accepted)
            outputs = [event for event in events if isinstance(event, Output)]
            assert [token_id for output in outputs for token_id in output.token_ids] == list(range(105, 111))
            assert sum(output.accepted for output in outputs) == 4
            last = events[-1]
            assert isinstance(last, Finished)
            assert last.reason is FinishReason.LENGTH
            assert last.usage is not None
            assert last.usage.drafted_per_position == [2, 2, 2]

    asyncio.run(scenario())


def test_closing_a_stream_early_frees_the_engine(model: Path) -> None:
    def first_two(client: Client) -> None:
        stream = client.stream(token_ids=[5])
        next(stream)
        next(stream)
        stream.close()

    async def scenario() -> None:
        async with running(model, FakeEngine(max_model_len=100_000)) as cluster:
            await _in_thread(cluster, first_two)
            await eventually(lambda: cluster.gateway.metrics.by_label("requests", "status") == {"cancelled": 1})
            assert cluster.gateway.live_requests == 0
            await eventually(lambda: not cluster.engine.live)
            assert len(cluster.engine.submitted) == 1

    asyncio.run(scenario())


def test_refusals_become_exceptions_that_say_what_was_wrong(model: Path) -> None:
    async def scenario() -> None:
        async with (
            running(model, max_live_requests=1, resume_wait_s=0.1) as cluster,
            AsyncClient(cluster.address, patience_s=0) as client,
        ):
            with pytest.raises(InvalidRequestError, match=r"token_ids\[0\]"):
                await client.generate(token_ids=[4000])
            with pytest.raises(ValueError, match="temperature"):
                await client.generate(token_ids=[5], temperature=-1)
            with pytest.raises(InvalidRequestError, match="exactly one of"):
                await client.generate("a", token_ids=[5])
            with pytest.raises(InvalidRequestError, match="not both"):
                await client.generate("a", params=SamplingParams(), temperature=0)
            with pytest.raises(DeadlineExceededError):
                await client.generate(token_ids=[5], timeout_s=0.05)
            await eventually(lambda: cluster.gateway.live_requests == 0)
            stream = client.stream(token_ids=[5], request_id="one")
            await anext(stream)
            with pytest.raises(DuplicateRequestError, match="'one'"):
                await client.generate(token_ids=[5], request_id="one")
            with pytest.raises(OverloadedError, match="live") as caught:
                await client.generate(token_ids=[5])
            assert 0 < caught.value.retry_after_s <= 1
            cluster.engine.fail("rank 1 is gone")
            with pytest.raises(GenerationFailedError, match="rank 1 is gone"):
                async for _ in stream:
                    pass

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("named", "asked"),
    [
        ("top_k must be at most 2147483647", {"token_ids": [5], "top_k": 9999999999}),
        ("max_tokens must be", {"token_ids": [5], "max_tokens": 2**64}),
        ("stop_token_ids cannot be sent: Value out of range", {"token_ids": [5], "stop_token_ids": [2**64]}),
        ("stop cannot be sent", {"token_ids": [5], "stop": ["\udcff"]}),
        ("temperature must be", {"token_ids": [5], "temperature": None}),
        ("ignore_eos cannot be sent", {"token_ids": [5], "ignore_eos": "yes"}),
        ("n must be an integer", {"token_ids": [5], "n": None}),
        (r"token_ids must be integers in \[0, 4294967295\], got None", {"token_ids": [None]}),
        ("prompt cannot be sent", {"prompt": "\udcff"}),
        ("request_id cannot be sent", {"token_ids": [5], "request_id": 5}),
        (r"messages\[1\] has no 'role'", {"messages": [{"role": "user", "content": "a"}, {"content": "b"}]}),
        (r"messages\[0\] has no 'content'", {"messages": [{"role": "user"}]}),
        (r"messages\[0\]\.content must be a text", {"messages": [{"role": "user", "content": 5}]}),
        ("messages cannot be sent", {"messages": [{"role": "user", "content": "\udcff"}]}),
        ("tools and chat_template_kwargs require messages", {"prompt": "a", "tools": [{"function": {"name": "f"}}]}),
        ("unknown parameter 'max_token': known parameters are n, .*max_tokens", {"token_ids": [5], "max_token": 5}),
    ],
)
def test_what_no_message_can_hold_is_an_invalid_request_that_names_it(named: str, asked: dict[str, Any]) -> None:
    async def ask_without_blocking() -> None:
        async with AsyncClient("127.0.0.1:1") as client:
            await client.generate(**asked)

    with Client("127.0.0.1:1") as client, pytest.raises(InvalidRequestError, match=named):
        client.generate(**asked)
    with pytest.raises(InvalidRequestError, match=named):
        asyncio.run(ask_without_blocking())


def test_a_gateway_that_is_not_there_is_unavailable_by_its_address_and_why() -> None:
    said = r"cannot reach 127\.0\.0\.1:1 \(Connection refused\): is a gateway running there\?"
    with Client("127.0.0.1:1") as client, pytest.raises(UnavailableError, match=said):
        client.generate("hello", timeout_s=5)


def test_status_and_model_come_from_the_controller(model: Path) -> None:
    async def scenario() -> None:
        async with running(model) as cluster, AsyncClient(cluster.address) as client:
            status, served = await client.status(), await client.model()
            plain = await _in_thread(cluster, lambda c: (c.status(), c.model()))

            assert [replica.name for replica in status.replicas] == ["r0"]
            assert (status.name, status.model) == ("test", "small")
            assert (served.name, served.path, served.fingerprint) == ("small", str(model), "feedbeef")
            same_but_for_lag = replace(plain[0], gateway=status.gateway)
            assert (same_but_for_lag, plain[1]) == (status, served)

            await cluster.controller.stop()
            with pytest.raises(UnavailableError, match="the controller at"):
                await client.status()
            await cluster.controller.start()

    asyncio.run(scenario())


def test_every_replica_drafts_with_the_checkpoint_that_is_swapped_in_and_one_that_does_not_fit_is_named(
    model: Path,
) -> None:
    async def scenario() -> None:
        async with running(model) as cluster:
            assert await _in_thread(cluster, lambda client: client.swap_drafter("/models/distilled")) == ["r0"]
            async with AsyncClient(cluster.address) as client:
                with pytest.raises(InvalidRequestError, match=r"checkpoint: replica r0.*another shape"):
                    await client.swap_drafter("misfit")
            assert cluster.engine.swapped == ["/models/distilled"]

    asyncio.run(scenario())


def test_without_a_replica_there_is_nothing_to_swap(model: Path) -> None:
    async def scenario() -> None:
        async with running(model, ready=False) as cluster, AsyncClient(cluster.address) as client:
            with pytest.raises(UnavailableError, match="no replica is ready"):
                await client.swap_drafter("/models/distilled")

    asyncio.run(scenario())
