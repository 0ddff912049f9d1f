"""The gateway's pure parts: admission, routing, and both ways over the wire."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.cluster.errors import DuplicateRequestError
from outrider.cluster.gateway import router, wire
from outrider.cluster.gateway.admission import Admission
from outrider.cluster.gateway.router import ReplicaId, RoutingTable
from outrider.cluster.gateway.server import GatewaySettings
from outrider.cluster.generation import (
    Accepted,
    ChatPrompt,
    Failed,
    Finished,
    GenerateCall,
    Message,
    Output,
    TextPrompt,
)
from outrider.workers.engine.request import FinishReason
from outrider.workers.errors import OverloadedError
from outrider.workers.outputs import Logprob
from outrider.workers.sampling_params import SamplingParams
from outrider.workers.structured_outputs import StructuredOutputsParams
from outrider.workers.text.assembler import Usage

A1, A2, B1 = ReplicaId("a", 1), ReplicaId("a", 2), ReplicaId("b", 1)


def test_a_table_is_matched_by_connecting_retiring_and_ending() -> None:
    table = RoutingTable(routes={A2: "h:2", B1: "h:3"}, ended={A1: "rank 0 died"})

    steps = router.changes([A1, B1], table)

    assert (dict(steps.connect), dict(steps.end), steps.retire) == ({A2: "h:2"}, {A1: "rank 0 died"}, frozenset())
    assert router.changes([B1], RoutingTable()).retire == {B1}


def test_a_generation_that_ended_is_never_connected_again() -> None:
    steps = router.changes([], RoutingTable(routes={A1: "h:1"}, ended={A1: "gone"}))

    assert not steps.connect


@given(
    live=st.dictionaries(st.sampled_from([A1, A2, B1]), st.integers(0, 5)), ready=st.sets(st.sampled_from([A1, A2, B1]))
)
def test_the_least_loaded_ready_replica_is_chosen(live: dict[ReplicaId, int], ready: set[ReplicaId]) -> None:
    chosen = router.choose(live, ready)

    if not ready:
        assert chosen is None
    else:
        assert chosen in ready
        assert live.get(chosen, 0) == min(live.get(one, 0) for one in ready)


def test_a_ticket_gives_everything_back_however_it_ends() -> None:
    admission = Admission(max_live_requests=2, max_queued_tokens=10)

    with admission.enter("a") as ticket:
        ticket.queue(10)
        with pytest.raises(OverloadedError), admission.enter("b") as other:
            other.queue(1)
        assert (admission.live_requests, admission.queued_tokens) == (1, 10)

    assert (admission.live_requests, admission.queued_tokens) == (0, 0)


def test_a_duplicate_leaves_the_live_request_its_place() -> None:
    admission = Admission(max_live_requests=2, max_queued_tokens=10)

    with admission.enter("a"):
        with pytest.raises(DuplicateRequestError):
            admission.enter("a")
        assert admission.live_requests == 1


def test_a_prompt_longer_than_the_queue_is_taken_when_it_is_alone() -> None:
    admission = Admission(max_live_requests=2, max_queued_tokens=10)

    with admission.enter("a") as ticket:
        ticket.queue(50)
        with admission.enter("b") as second, pytest.raises(OverloadedError):
            second.queue(1)
        ticket.started()
        assert admission.queued_tokens == 0


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
            usage=Usage(prompt_tokens=1, completion_tokens=2, accepted_per_position=[1], drafted_per_position=[2, 1]),
        ),
        Failed(message="rank 1 died"),
    ],
)
def test_events_survive_the_wire(event: Accepted | Output | Finished | Failed) -> None:
    assert wire.event_from_wire(wire.event_to_wire(event)) == event


@pytest.mark.parametrize("speculation", [None, "auto", "off", 1, 16])
def test_calls_survive_the_wire(speculation: str | int | None) -> None:
    params = SamplingParams(
        n=3, temperature=0.5, stop=("a", "b"), stop_token_ids=(1, 2), max_tokens=None, speculation=speculation,
        logit_bias={3: -1.5}, allowed_token_ids=[1, 3], bad_words=["é"], bad_words_token_ids=[[4, 5]],
        repetition_penalty=1.1, presence_penalty=-0.5, frequency_penalty=0.5, logprobs=1, prompt_logprobs=2,
    )  # fmt: skip
    for prompt in (TextPrompt("hello"), ChatPrompt((Message(role="user", content="é"),))):
        call = GenerateCall(prompt=prompt, params=params, request_id="r", speculation_detail=True)
        assert wire.call_from_wire(wire.call_to_wire(call)) == call


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
    assert wire.call_from_wire(wire.call_to_wire(call)) == call


@pytest.mark.parametrize(
    ("name", "value"),
    [("port", 70000), ("metrics_port", -1), ("max_live_requests", 0), ("max_queued_tokens", 0), ("drain_grace_s", -1)],
)
def test_a_setting_out_of_range_is_named(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        GatewaySettings(controller="h:1", **{name: value})
