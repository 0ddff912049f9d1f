"""The same request over gRPC, over HTTP and in process has the same tokens, with drafts as without."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from gateway.http.served import Served

from outrider import LLM, Client, SamplingParams, StructuredOutputsParams

MESSAGES = [{"role": "user", "content": "Write a class for a stack."}]
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 9}}, "required": ["name"]}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "greedy": {"temperature": 0.0},
    "penalties": {"presence_penalty": 0.5, "frequency_penalty": 0.3, "repetition_penalty": 1.2, "min_p": 0.02},
    "stops": {"stop": ["self"], "top_k": 50, "top_p": 0.9},
    "bias": {"logit_bias": {40: 5.0}, "ignore_eos": True},
    "several": {"n": 3},
    "logprobs": {"logprobs": 2},
}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("scout") as llm:
        yield llm


def tokens_over_http(scout: Served, path: str, body: dict[str, Any]) -> list[list[int]]:
    body = {**body, "return_token_ids": True}
    if "logit_bias" in body:
        body["logit_bias"] = {str(token): bias for token, bias in body["logit_bias"].items()}
    answer = httpx.post(f"{scout.url}{path}", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return [choice["token_ids"] for choice in answer.json()["choices"]]


@pytest.mark.parametrize("speculation", ["off", "auto", 4])
@pytest.mark.parametrize("case", CASES)
def test_a_completion(scout: Served, llm: LLM, case: str, speculation: str | int) -> None:
    given = {"max_tokens": 30, "seed": 11, "speculation": speculation, **CASES[case]}

    over_http = tokens_over_http(scout, "/v1/completions", {"prompt": "def add(a, b):", **given})
    with Client(scout.address) as client:
        over_grpc = [output.token_ids for output in client.generate("def add(a, b):", **given).outputs]
    (in_process,) = llm.generate("def add(a, b):", SamplingParams(**given))

    assert over_http == over_grpc == [output.token_ids for output in in_process.outputs]


@pytest.mark.parametrize("speculation", ["off", "auto", 4])
def test_a_chat_and_its_schema(scout: Served, llm: LLM, speculation: str | int) -> None:
    given = {"max_tokens": 40, "seed": 7, "speculation": speculation}
    structured = StructuredOutputsParams(json=SCHEMA)
    format = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
    for extra, own in (({}, {}), ({"response_format": format}, {"structured_outputs": structured})):
        over_http = tokens_over_http(scout, "/v1/chat/completions", {"messages": MESSAGES, **given, **extra})
        with Client(scout.address) as client:
            over_grpc = client.generate(messages=MESSAGES, **given, **own)
        (in_process,) = llm.chat(MESSAGES, SamplingParams(**given, **own))
        assert over_http == [over_grpc.token_ids] == [in_process.outputs[0].token_ids]


def test_a_call_of_a_function(scout: Served) -> None:
    tools = [{"type": "function", "function": {"name": "push", "parameters": SCHEMA}}]
    chat: dict[str, Any] = {
        "messages": MESSAGES,
        "tools": tools,
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }
    for speculation in ("off", "auto", 4):
        given = {"max_tokens": 60, "seed": 7, "speculation": speculation}
        over_http = tokens_over_http(scout, "/v1/chat/completions", {**chat, **given})
        with Client(scout.address) as client:
            over_grpc = client.generate(**chat, **given)
        assert over_http == [over_grpc.token_ids]
        assert [call.name for call in over_grpc.tool_calls] == ["push"]
