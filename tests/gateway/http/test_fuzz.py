"""Request bodies with random errors: the gateway responds, or rejects them with a message, and never fails."""

import asyncio
import copy
import json
import random
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import FakeEngine
from gateway.harness import eventually, running

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}}
TURNS = [
    {"role": "system", "content": "x"},
    {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "c", "content": "4"},
]
SAMPLING = {
    "max_tokens": 2, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "n": 1, "seed": 1, "stop": ["a"], "stream": False,
    "logit_bias": {"5": 1.0}, "presence_penalty": 0.1, "speculation": {"mode": "fixed", "depth": 2}, "min_tokens": 0,
    "response_format": {"type": "text"}, "return_token_ids": True, "bad_words": ["b"], "stop_token_ids": [3],
}  # fmt: skip
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": "small", "prompt": "a", "echo": True, "logprobs": 1, **SAMPLING},
    "/v1/chat/completions": {
        "messages": TURNS, "tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": True, "logprobs": True,
        "top_logprobs": 1, "chat_template_kwargs": {"thinking": True}, "stream_options": None, **SAMPLING,
    },
    "/v1/messages": {
        "max_tokens": 2, "system": [{"type": "text", "text": "x"}], "stop_sequences": ["a"], "temperature": 0.5,
        "tools": [{"name": "f", "input_schema": {"type": "object"}}], "tool_choice": {"type": "auto"},
        "thinking": {"type": "enabled"},
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "4"}]},
        ],
    },
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/responses": {
        "max_output_tokens": 2, "instructions": "x", "text": {"format": {"type": "text"}},
        "reasoning": {"effort": "low"},
        "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}], "tool_choice": "auto",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "4"},
        ],
    },
    "/tokenize": {"messages": TURNS, "tools": [TOOL]},
    "/detokenize": {"tokens": [5, 6]},
}  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, 10**30, -(2**64), 1.5, -0.0, 1e308, float("nan"), float("inf"), "",
    "x", "\ud800", "auto", "none", "required", "</think>", "<｜tool▁calls▁begin｜>", "{}", [], {}, [None], [[]], [1.5],
    ["a"], {"type": "function"}, {"a": {"b": []}}, {"role": "user"}, {"type": "text", "text": 5}, [0] * 50, "x" * 5000,
    {"": ""},
    {"$ref": "#"}, {"type": "object", "properties": 5}, {"type": "string", "pattern": "("}, {"x-guidance": 5},
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    if isinstance(value, list):
        inner = list(enumerate(value))
    return [path, *(place for key, one in inner for place in places(one, (*path, key)))]


def damaged(body: dict[str, Any], dice: random.Random) -> bytes:
    body = json.loads(json.dumps(body))
    for _ in range(dice.choice([1, 1, 1, 2, 3]) if len(body) > 2 else 1):
        path = dice.choice([place for place in places(body) if place])
        at = body
        for key in path[:-1]:
            at = at[key]
        if dice.random() < 0.2:
            del at[path[-1]]
        elif dice.random() < 0.1 and isinstance(at, dict):
            at[dice.choice(["extra", "__class__", "stream", "n"])] = copy.deepcopy(dice.choice(VALUES))
        else:
            at[path[-1]] = copy.deepcopy(dice.choice(VALUES))
    text = bytearray(json.dumps(body).encode())
    if dice.random() < 0.1:
        text[dice.randrange(len(text))] = dice.randrange(256)
    if dice.random() < 0.03:
        text = text.replace(b"2", b"[" * dice.choice([100, 100_000]), 1)
    return bytes(text[: dice.randrange(len(text))] if dice.random() < 0.02 else text)


FEW = range(3000)
A_HUNDRED_THOUSAND = [
    pytest.param(range(first, first + 10_000), marks=pytest.mark.full) for first in range(0, 100_000, 10_000)
]


@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    "numbers", [FEW, *A_HUNDRED_THOUSAND], ids=lambda numbers: f"{numbers.start} to {numbers.stop}"
)
def test_no_damaged_body_fails_the_gateway(model: Path, numbers: range) -> None:
    """The hundred thousand: `pytest tests/gateway/http/test_fuzz.py`."""

    async def visit(http: httpx.AsyncClient, number: int) -> int:
        dice = random.Random(number)
        path = dice.choice(list(BODIES))
        response = await http.post(path, content=damaged(BODIES[path], dice))
        assert response.status_code < 500, (number, path, response.text)
        if response.status_code != 200:
            assert response.json()["error"]["message"], number
        return response.status_code

    async def scenario() -> None:
        async with running(model, FakeEngine(round_s=0.0002, max_model_len=512), http_port=0) as cluster:
            url = f"http://127.0.0.1:{cluster.gateway.http_port}"
            async with httpx.AsyncClient(base_url=url, timeout=120) as http:
                statuses: list[int] = []
                for first in range(0, len(numbers), 50):
                    statuses += await asyncio.gather(*(visit(http, one) for one in numbers[first : first + 50]))
            assert len(statuses) == len(numbers)
            assert len(numbers) / 20 < statuses.count(200) < len(numbers) * 19 / 20, "too easy, or too hard"
            await eventually(lambda: not cluster.engine.live and not cluster.gateway.live_requests)

    asyncio.run(scenario())
