"""Request bodies as calls, and events as responses, without a server."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from outrider.cluster.api.collector import Collector
from outrider.cluster.api.errors import InvalidRequestError
from outrider.cluster.api.generation import Accepted, ChatPrompt, Event, Finished, Message, Output
from outrider.cluster.gateway.http.answer import metrics_of
from outrider.cluster.gateway.http.anthropic import MessagesAnswer
from outrider.cluster.gateway.http.chat import ChatAnswer
from outrider.cluster.gateway.http.errors import problem_of
from outrider.cluster.gateway.http.responses import ResponsesAnswer
from outrider.cluster.gateway.http.types import Body, ChatRequest, CompletionRequest, MessagesRequest, ResponsesRequest
from outrider.workers.text.assembler import Usage
from outrider.workers.types.errors import OverloadedError
from outrider.workers.types.requests.request import FinishReason
from outrider.workers.types.requests.tools import ToolCall, ToolCallDelta

HELLO = [{"role": "user", "content": "hi"}]
PROMPT = (5, 6)


def said(*pieces: dict[str, Any], reason: FinishReason = FinishReason.STOP) -> list[Event]:
    """The events of one output that consists of these pieces."""
    outputs = [Output(index=0, token_ids=(n,), **piece) for n, piece in enumerate(pieces)]
    usage = Usage(prompt_tokens=2, cached_tokens=1, completion_tokens=len(pieces))
    begun = Accepted(request_id="r", seed=3, prompt_tokens=2, fingerprint="f")
    return [begun, *outputs, Finished(index=0, reason=reason, usage=usage)]


def call(index: int, name: str = "", arguments: str = "") -> dict[str, Any]:
    identity = f"call_{index}" if name else ""
    return {"tool_calls": (ToolCallDelta(index=index, id=identity, name=name, arguments=arguments),)}


def whole(answer: Any, events: list[Event]) -> dict[str, Any]:
    collector = Collector(1)
    for event in events:
        collector.add(event)
    result: dict[str, Any] = answer.whole([collector.result()], [PROMPT])
    return result


def streamed(answer: Any, events: list[Event]) -> Iterator[dict[str, Any]]:
    sent = b"".join(chunk for event in events for chunk in answer.chunks(0, event, PROMPT)) + b"".join(answer.end())
    for line in sent.split(b"\n"):
        if line.startswith(b"data: {"):
            yield json.loads(line.removeprefix(b"data: "))


CALLS = said(
    {"reasoning": "hm"},
    {"text": "so "},
    {"text": "be it"},
    call(0, "add", '{"a"'),
    call(0, "", ": 1}"),
    call(1, "now", "{}"),
)
PIECES = st.lists(
    st.one_of(
        st.builds(lambda text: {"text": text}, st.text(min_size=1)),
        st.builds(lambda text: {"reasoning": text}, st.text(min_size=1)),
    )
)


def test_a_chat_with_calls_is_the_same_whole_and_streamed() -> None:
    message = whole(ChatAnswer(ChatRequest(messages=HELLO), "m", "r", None), CALLS)["choices"][0]
    deltas = list(streamed(ChatAnswer(ChatRequest(messages=HELLO, stream=True), "m", "r", None), CALLS))

    assert message["finish_reason"] == deltas[-1]["choices"][0]["finish_reason"] == "tool_calls"
    calls: dict[int, dict[str, Any]] = {}
    for delta in deltas:
        for one in delta["choices"][0]["delta"].get("tool_calls", ()):
            known = calls.setdefault(one["index"], {**one, "function": {**one["function"], "arguments": ""}})
            known["function"]["arguments"] += one["function"]["arguments"]
    assert [{k: v for k, v in one.items() if k != "index"} for one in calls.values()] == message["message"][
        "tool_calls"
    ]
    assert (message["message"]["content"], message["message"]["reasoning"]) == ("so be it", "hm")


def test_a_message_with_calls_is_the_same_whole_and_streamed() -> None:
    asked: dict[str, Any] = {"messages": HELLO, "max_tokens": 9}
    content = whole(MessagesAnswer(MessagesRequest(**asked), "m", "r"), CALLS)["content"]
    blocks: list[dict[str, Any]] = []
    opened = None
    for event in streamed(MessagesAnswer(MessagesRequest(**asked, stream=True), "m", "r"), CALLS):
        match event["type"]:
            case "content_block_start":
                assert opened is None
                opened = event["index"]
                blocks.append({**event["content_block"], "json": ""})
            case "content_block_delta":
                assert event["index"] == opened == len(blocks) - 1
                delta = event["delta"]
                key = {"input_json_delta": "json", "text_delta": "text", "thinking_delta": "thinking"}[delta["type"]]
                blocks[-1][key] += delta["partial_json" if key == "json" else key]
            case "content_block_stop":
                opened = None
            case "message_delta":
                assert event["delta"]["stop_reason"] == "tool_use"
                assert event["usage"]["cache_read_input_tokens"] == 1
    for block in blocks:
        if text := block.pop("json"):
            block["input"] = json.loads(text)
    assert blocks == content
    assert [block["type"] for block in content] == ["thinking", "text", "tool_use", "tool_use"]


def test_a_response_with_calls_is_the_same_whole_and_streamed() -> None:
    output = whole(ResponsesAnswer(ResponsesRequest(input="hi"), "m", "r", None), CALLS)["output"]
    events = list(streamed(ResponsesAnswer(ResponsesRequest(input="hi", stream=True), "m", "r", None), CALLS))

    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["item"] for event in events if event["type"] == "response.output_item.done"] == output
    assert events[-1]["type"] == "response.completed"
    assert events[-1]["response"]["output"] == output
    assert [item["type"] for item in output] == ["reasoning", "message", "function_call", "function_call"]


@given(PIECES)
def test_whatever_is_said_is_streamed_as_it_is_whole(pieces: list[dict[str, Any]]) -> None:
    events = said(*pieces)
    message = whole(ChatAnswer(ChatRequest(messages=HELLO), "m", "r", None), events)["choices"][0]["message"]
    chunks = streamed(ChatAnswer(ChatRequest(messages=HELLO, stream=True), "m", "r", None), events)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]

    assert "".join(delta.get("content", "") for delta in deltas) == message["content"]
    assert "".join(delta.get("reasoning", "") for delta in deltas) == message.get("reasoning", "")


def test_anthropics_blocks_become_turns() -> None:
    use = {"type": "tool_use", "id": "c", "name": "add", "input": {"a": 1}}
    results = [{"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text", "text": "2"}]}]
    request = MessagesRequest(
        max_tokens=5,
        system=[{"type": "text", "text": "be"}, {"type": "text", "text": "kind"}],
        messages=[
            {"role": "user", "content": "1 + 1?"},
            {
                "role": "assistant",
                "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "so"}, use],
            },
            {"role": "user", "content": [*results, {"type": "text", "text": "and?"}]},
        ],
        tools=[{"name": "add", "input_schema": {"type": "object"}}],
        tool_choice={"type": "tool", "name": "add", "disable_parallel_tool_use": True},
        thinking={"type": "enabled", "budget_tokens": 1024},
    )

    prompt = MessagesAnswer(request, "m", "r").calls[0].prompt

    assert isinstance(prompt, ChatPrompt)
    made = ToolCall(id="c", name="add", arguments='{"a": 1}')
    assert list(prompt.messages) == [
        Message(role="system", content=("be", "kind")),
        Message(role="user", content="1 + 1?"),
        Message(role="assistant", content=("so",), tool_calls=(made,), reasoning="hm"),
        Message(role="tool", content=("2",), tool_call_id="c"),
        Message(role="user", content=("and?",)),
    ]
    assert (prompt.tools.choice, prompt.tools.function, prompt.tools.parallel) == ("required", "add", False)
    assert prompt.arguments == {"thinking": True}


def test_items_of_a_response_become_turns() -> None:
    items: list[dict[str, Any]] = [
        {"role": "developer", "content": "be kind"},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "so"}]},
        {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "2"},
    ]
    prompt = ResponsesAnswer(ResponsesRequest(input=items, instructions="x"), "m", "r", None).calls[0].prompt

    assert isinstance(prompt, ChatPrompt)
    assert list(prompt.messages) == [
        Message(role="system", content="x"),
        Message(role="system", content="be kind"),
        Message(
            role="assistant",
            content=("so",),
            tool_calls=(ToolCall(id="c", name="add", arguments="{}"),),
            reasoning="hm",
        ),
        Message(role="tool", content="2", tool_call_id="c"),
    ]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1))
def test_acceptance_is_counted_as_vllm_counts_it(rounds: list[tuple[int, int]]) -> None:
    usage = Usage()
    for drafted, accepted in rounds:
        usage.add_round(min(accepted, drafted) + 1, drafted, min(accepted, drafted))
    steps = [(drafted, min(accepted, drafted)) for drafted, accepted in rounds if drafted]

    metrics = metrics_of([usage], 1)

    if not steps:
        assert metrics is None
        return
    assert metrics is not None
    found = metrics["speculative_decoding"]
    counts = [[accepted for _, accepted in steps].count(n) for n in range(len(found["acceptance_histogram"]))]
    assert found["acceptance_histogram"] == counts
    assert sum(counts) == found["num_spec_steps"] == len(steps)
    assert found["num_draft_tokens"] == sum(drafted for drafted, _ in steps)
    assert found["mean_acceptance_length"] == pytest.approx(1 + sum(n for _, n in steps) / len(steps))
    assert metrics_of([usage], 2) is None


def test_errors_have_the_status_that_clients_act_on() -> None:
    found = problem_of(OverloadedError("full", 2.1))
    assert found is not None
    assert (found.status, found.headers) == (429, {"Retry-After": "3"})
    named = problem_of(InvalidRequestError("temperature must be in [0, 100], got 101"))
    assert named is not None
    assert (named.status, named.param) == (400, "temperature")
    assert problem_of(KeyError("x")) is None


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (CompletionRequest, {"prompt": [None] * 1000}),
        (CompletionRequest, {"prompt": [[None]] * 1000}),
        (CompletionRequest, {"prompt": "a", "stop_token_ids": ["x"] * 1000}),
        (ChatRequest, {"messages": [5] * 1000}),
        (MessagesRequest, {"messages": [], "stop_sequences": [5] * 1000}),
        (ResponsesRequest, {"input": [5] * 1000}),
    ],
)
def test_a_list_is_checked_up_to_its_first_error(kind: type[Body], body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(body)

    assert caught.value.error_count() <= 5
