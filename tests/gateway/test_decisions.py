"""The gateway's pure parts: admission, routing, and both ways over the wire."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.cluster.api.calls import call_from_wire, call_to_wire
from outrider.cluster.api.events import event_from_wire, event_to_wire
from outrider.cluster.api.generation import (
    Accepted,
    ChatPrompt,
    Failed,
    Finished,
    GenerateCall,
    Message,
    Output,
    Resume,
    TextPrompt,
)
from outrider.cluster.gateway.routing import router
from outrider.cluster.gateway.routing.load import BLOCK_TOKENS, EXPECTED_OUTPUT_TOKENS, PrefixKeys, ReplicaLoad
from outrider.cluster.gateway.routing.router import Never, NoReplicaYet, ReplicaId, RoutingCandidate, RoutingTable
from outrider.cluster.gateway.settings import GatewaySettings
from outrider.proto import inference_pb2 as pb
from outrider.workers.text.assembler import Usage
from outrider.workers.text.outputs import Logprob
from outrider.workers.types.requests.request import FinishReason, OutputSoFar, Request
from outrider.workers.types.requests.sampling_params import SamplingParams
from outrider.workers.types.requests.structured_outputs import StructuredOutputsParams
from outrider.workers.types.requests.tools import Tool, ToolCall, ToolCallDelta, Tools

A1, A2, B1 = ReplicaId("a", 1), ReplicaId("a", 2), ReplicaId("b", 1)


def test_a_table_is_matched_by_connecting_retiring_and_ending() -> None:
    table = RoutingTable(routes={A2: "h:2", B1: "h:3"}, ended={A1: "rank 0 died"})

    steps = router.changes([A1, B1], table)

    assert (dict(steps.connect), dict(steps.end), steps.retire) == ({A2: "h:2"}, {A1: "rank 0 died"}, frozenset())
    assert router.changes([B1], RoutingTable()).retire == {B1}


def test_a_generation_that_ended_is_never_connected_again() -> None:
    steps = router.changes([], RoutingTable(routes={A1: "h:1"}, ended={A1: "gone"}))

    assert not steps.connect


CANDIDATES = st.builds(
    RoutingCandidate,
    load_tokens=st.integers(0, 5000),
    cached_tokens=st.integers(0, 3000),
    fingerprint=st.sampled_from(["f", "g"]),
)
FLEETS = st.dictionaries(st.sampled_from([A1, A2, B1]), CANDIDATES)


@given(fleet=FLEETS, prompt=st.integers(1, 4000))
def test_the_replica_with_the_least_to_compute_is_chosen_the_prompt_included(
    fleet: dict[ReplicaId, RoutingCandidate], prompt: int
) -> None:
    chosen = router.choose(fleet, prompt)

    def work(one: ReplicaId) -> int:
        return fleet[one].load_tokens + max(0, prompt - fleet[one].cached_tokens)

    assert (chosen is None) == (not fleet)
    assert all(work(chosen) <= work(one) for one in fleet if chosen is not None)


def test_a_prefix_is_followed_until_what_it_spares_is_less_than_the_lead_of_others() -> None:
    def chosen(lead: int) -> ReplicaId | None:
        busy, idle = RoutingCandidate(load_tokens=lead, cached_tokens=640), RoutingCandidate(load_tokens=0)
        return router.choose({A1: idle, B1: busy}, prompt_tokens=1000)

    assert (chosen(639), chosen(641)) == (B1, A1)


@given(fleet=FLEETS, pending=st.integers(0, 1), unheard=st.booleans(), draining=st.booleans())
def test_a_lost_request_goes_to_equal_numerics_or_waits_or_is_told_that_none_is_left(
    fleet: dict[ReplicaId, RoutingCandidate], pending: int, unheard: bool, draining: bool
) -> None:
    routes = dict.fromkeys(fleet, "h:1") | ({ReplicaId("c", 1): "h:2"} if unheard else {})
    table = RoutingTable(routes=routes, pending=pending, draining=draining)

    found = router.successor(fleet, table, "f", 100)

    if any(candidate.fingerprint == "f" for candidate in fleet.values()):
        assert isinstance(found, ReplicaId)
        assert fleet[found].fingerprint == "f"
    else:
        assert isinstance(found, NoReplicaYet if (pending or unheard) and not draining else Never)


def a_request(request_id: str, *prompt: int, **params: int) -> Request:
    return Request(request_id=request_id, prompt_token_ids=prompt, params=SamplingParams(**params), seed=0)


def test_a_replicas_load_is_the_tokens_it_still_has_to_compute() -> None:
    load = ReplicaLoad()
    prompt = tuple(range(200))

    load.begin(a_request("a", *prompt, max_tokens=40), PrefixKeys.of(prompt))
    load.begin(a_request("b", 1, 2, max_tokens=10_000, n=2), PrefixKeys.of((1, 2)))
    assert load.tokens == 200 + 40 + 2 + 2 * EXPECTED_OUTPUT_TOKENS

    load.prefilled("a")
    assert load.tokens == 40 + 2 + 2 * EXPECTED_OUTPUT_TOKENS
    load.begin(a_request("c", *prompt, max_tokens=1), PrefixKeys.of(prompt))
    assert load.tokens == 40 + (200 - 192) + 1 + 2 + 2 * EXPECTED_OUTPUT_TOKENS, "192 of c's 200 tokens were a's too"

    for one in "abc":
        load.end(one)
    assert load.tokens == 0


@given(prompts=st.lists(st.lists(st.integers(0, 1), max_size=400), max_size=8), asked=st.lists(st.integers(0, 1)))
def test_the_cached_part_of_a_prompt_is_its_longest_common_prefix_in_whole_blocks(
    prompts: list[list[int]], asked: list[int]
) -> None:
    load = ReplicaLoad()
    for number, prompt in enumerate(prompts):
        load.begin(a_request(str(number), *prompt), PrefixKeys.of(prompt))

    def common(prompt: list[int]) -> int:
        return next(
            (n for n, (x, y) in enumerate(zip(prompt, asked, strict=False)) if x != y), min(len(prompt), len(asked))
        )

    longest = max((common(prompt) for prompt in prompts), default=0)
    assert load.cached_tokens(PrefixKeys.of(asked)) == longest // BLOCK_TOKENS * BLOCK_TOKENS


def test_a_load_book_forgets_the_prompts_used_longest_ago() -> None:
    load = ReplicaLoad(most_blocks=3)
    old, new = [1] * 2 * BLOCK_TOKENS, [2] * 2 * BLOCK_TOKENS
    for name, prompt in (("old", old), ("new", new)):
        load.begin(a_request(name, *prompt), PrefixKeys.of(prompt))

    assert load.cached_tokens(PrefixKeys.of(new)) == 2 * BLOCK_TOKENS
    assert load.cached_tokens(PrefixKeys.of(old)) == BLOCK_TOKENS, "of one prompt the end is forgotten first"


@pytest.mark.parametrize(
    "event",
    [
        Accepted(request_id="r", seed=-5, prompt_tokens=3, fingerprint="f"),
        Output(index=1, token_ids=(4, 5), text="é", drafted=3, accepted=1),
        Output(index=0, reasoning="hm"),
        Output(index=0, prompt_logprobs=({4: Logprob(logprob=-0.5, rank=1, decoded_token="x")}, {})),
        Output(index=0, token_ids=(4,), logprobs=({4: Logprob(logprob=-1.0, rank=2, decoded_token="x")},)),
        Finished(index=2, reason=FinishReason.STOP, stop_reason="\n\n"),
        Finished(index=2, reason=FinishReason.STOP, stop_reason=0),
        Finished(index=0, reason=FinishReason.CANCELLED),
        Finished(
            index=0,
            reason=FinishReason.LENGTH,
            usage=Usage(
                prompt_tokens=1,
                completion_tokens=2,
                accepted_per_position=[1],
                drafted_per_position=[2, 1],
                rounds_per_depth=[0, 1, 1],
                estimated_time_saved_s=0.25,
            ),
        ),
        Failed(message="rank 1 died"),
    ],
)
def test_events_survive_the_wire(event: Accepted | Output | Finished | Failed) -> None:
    assert event_from_wire(event_to_wire(event)) == event


@pytest.mark.parametrize("speculation", [None, "auto", "off", 1, 16])
def test_calls_survive_the_wire(speculation: str | int | None) -> None:
    params = SamplingParams(
        n=3, temperature=0.5, stop=("a", "b"), stop_token_ids=(1, 2), max_tokens=None, speculation=speculation,
        logit_bias={3: -1.5}, allowed_token_ids=[1, 3], bad_words=["é"], bad_words_token_ids=[[4, 5]],
        repetition_penalty=1.1, presence_penalty=-0.5, frequency_penalty=0.5, logprobs=1, prompt_logprobs=2,
    )  # fmt: skip
    for prompt in (TextPrompt("hello"), ChatPrompt((Message(role="user", content="é"),))):
        resume = Resume(
            seed=-7, fingerprint="f", outputs=(OutputSoFar(index=1, token_ids=(5, 6)), OutputSoFar(index=2))
        )
        call = GenerateCall(prompt=prompt, params=params, request_id="r", speculation_detail=True, resume=resume)
        assert call_from_wire(call_to_wire(call)) == call


@pytest.mark.parametrize(
    "constraint",
    [
        {"json": '{"type": "object"}', "disable_any_whitespace": True},
        {"json_object": True, "whitespace_pattern": " ?"},
        {"regex": "a+"},
        {"grammar": "start: /a/"},
        {"choice": ["a", "é"]},
    ],
)
def test_structured_outputs_survive_the_wire(constraint: dict[str, Any]) -> None:
    params = SamplingParams(structured_outputs=StructuredOutputsParams(**constraint), max_tokens=None, reasoning=True)
    call = GenerateCall(prompt=TextPrompt("hello"), params=params)
    assert call_from_wire(call_to_wire(call)) == call


def test_a_conversation_survives_the_wire() -> None:
    call = ToolCall(id="c", name="add", arguments='{"left": 1}')
    messages = (
        Message(role="system", content=("be", "kind")),
        Message(role="assistant", content="hm", tool_calls=(call, call), reasoning="well"),
        Message(role="tool", content="2", tool_call_id="c", name="add"),
    )
    tools = (
        Tool(name="add", description="adds", parameters={"properties": {"left": {"type": "number"}}}),
        Tool(name="b"),
    )
    for choice, function in (("auto", ""), ("none", ""), ("required", ""), ("required", "b")):
        prompt = ChatPrompt(
            messages,
            Tools(tools=tools, choice=choice, function=function, parallel=False),
            {"thinking": True, "n": [1.5]},
        )
        asked = GenerateCall(prompt=prompt, params=SamplingParams(max_tokens=None), auto_reasoning=True)
        assert call_from_wire(call_to_wire(asked)) == asked


def test_what_a_call_gained_survives_the_wire() -> None:
    deltas = (ToolCallDelta(index=0, id="c", name="add", arguments="{"), ToolCallDelta(index=1, arguments="}"))
    event = Output(index=1, tool_calls=deltas)
    assert event_from_wire(event_to_wire(event)) == event


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (pb.Messages(template_arguments="[]"), "template_arguments must be a JSON object"),
        (pb.Messages(template_arguments="{" * 9999), "template_arguments must be JSON"),
        (pb.Messages(tools=[pb.Tool(name="a", parameters="5")]), "parameters of a must be a JSON object"),
        (pb.Messages(tools=[pb.Tool(name="a b")]), "name must be"),
        (pb.Messages(messages=[pb.Message(content="a", parts=[pb.ContentPart(text="b")])]), "content or parts"),
        (pb.Messages(messages=[pb.Message(parts=[pb.ContentPart()])]), "must be text"),
    ],
)
def test_a_conversation_that_cannot_be_is_refused_by_name(messages: pb.Messages, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call_from_wire(pb.GenerateRequest(messages=messages))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", 70000),
        ("http_port", -1),
        ("metrics_port", -1),
        ("max_live_requests", 0),
        ("max_queued_tokens", 0),
        ("max_queue_wait_s", -1),
        ("max_live_requests_per_token", 0),
        ("drain_grace_s", -1),
    ],
)
def test_a_setting_out_of_range_is_named(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        GatewaySettings(controller="h:1", **{name: value})
