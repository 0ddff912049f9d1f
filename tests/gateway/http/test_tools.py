"""Tool calls with random schemas: complete, valid, equal with any speculation, and absent from the text.

Checked with jsonschema, and with a parser of DeepSeek's formats written for this test.
"""

import json
import random
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from gateway.http.served import Served

from outrider.workers.config import resolve_model
from outrider.workers.text.assembler import OutputAssembler
from outrider.workers.text.tokenizer import Tokenizer
from outrider.workers.text.tool_calls import merged
from outrider.workers.types.requests.request import FinishReason, SequenceChunk
from outrider.workers.types.requests.sampling_params import SamplingParams

NAMES = ("add", "get_weather", "search.web", "a-b", "roll", "x")
CALL = re.compile(
    r"<｜tool▁call▁begin｜>function<｜tool▁sep｜>(?P<name>[^\n]+)\n```json\n(?P<arguments>.*?)\n```<｜tool▁call▁end｜>",
    re.DOTALL,
)


def schema(dice: random.Random, depth: int = 0) -> dict[str, Any]:
    """A bounded schema, so that a small model finishes."""
    kinds = ["string", "integer", "boolean", "enum", "null"] + (["array", "object"] if depth < 2 else [])
    kind = dice.choice(kinds)
    match kind:
        case "string":
            return {"type": "string", "maxLength": dice.randint(1, 8)}
        case "integer":
            return {"type": "integer", "minimum": dice.randint(-9, 0), "maximum": dice.randint(1, 99)}
        case "enum":
            return {"enum": dice.sample(["red", "green", 1, 2.5, True, None, '{"}', "你好", "\n```"], 3)}
        case "array":
            return {"type": "array", "items": schema(dice, depth + 1), "maxItems": dice.randint(1, 2)}
        case "object":
            return an_object(dice, depth + 1)
        case _:
            return {"type": kind}


def an_object(dice: random.Random, depth: int = 0) -> dict[str, Any]:
    names = dice.sample(["city", "days", "a b", "é", "x", '"q"'], dice.randint(0, 3))
    properties = {name: schema(dice, depth) for name in names}
    required = [name for name in names if dice.random() < 0.7]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def request(number: int) -> dict[str, Any]:
    dice = random.Random(number)
    names = dice.sample(NAMES, dice.randint(1, 3))
    tools = [{"type": "function", "function": {"name": name, "parameters": an_object(dice)}} for name in names]
    choice: Any = dice.choice(["required", {"type": "function", "function": {"name": names[0]}}])
    parallel = dice.random() < 0.15
    return {
        "messages": [{"role": "user", "content": f"Task {number}: call a tool."}],
        "tools": tools,
        "tool_choice": choice,
        "parallel_tool_calls": parallel,
        "max_tokens": 300 if parallel else 1200,  # one call comes to an end, several need not
        "seed": number,
        "temperature": dice.choice([0.0, 0.7, 1.0]),
        "return_token_ids": True,
    }


def asked(scout: Served, body: dict[str, Any]) -> dict[str, Any]:
    answer = httpx.post(f"{scout.v1}/chat/completions", json=body, timeout=600)
    assert answer.status_code == 200, answer.text
    choice: dict[str, Any] = answer.json()["choices"][0]
    return choice


SOME_SIZES, EVERY_SIZE = (1, 2, 3, 5, 17, 1000), range(1, 1001)
FEW = range(40)
A_THOUSAND = [pytest.param(range(first, first + 100), marks=pytest.mark.full) for first in range(40, 1040, 100)]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("numbers", [FEW, *A_THOUSAND], ids=lambda numbers: f"from {numbers.start}")
def test_calls_are_whole_valid_and_equal_with_any_speculation(scout: Served, numbers: range) -> None:
    """The thousand: `pytest tests/gateway/http/test_tools.py -k whole_valid`."""
    tokenizer = Tokenizer.load(resolve_model("scout"))
    assert tokenizer is not None

    def check(number: int) -> None:
        body = request(number)
        plain = asked(scout, {**body, "speculation": "off"})
        for speculation in ("auto", 4):
            assert asked(scout, {**body, "speculation": speculation})["token_ids"] == plain["token_ids"]
        assert not plain["message"]["content"]
        check_calls(body, plain, tokenizer)
        check_chunks(plain, tokenizer, SOME_SIZES if numbers == FEW else EVERY_SIZE)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(check, numbers))


def check_calls(body: dict[str, Any], choice: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Checks calls with another parser and another schema validator."""
    calls = [one["function"] for one in choice["message"]["tool_calls"]]
    said = CALL.findall(tokenizer.decode(choice["token_ids"], skip_special_tokens=False))
    if choice["finish_reason"] == "length":  # a small model that may call again and again does
        assert body["parallel_tool_calls"]
        calls = calls[: len(said)]
    assert [(one["name"], one["arguments"]) for one in calls] == said
    assert len(calls) == 1 or body["parallel_tool_calls"]
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in body["tools"]}
    for call in calls:
        jsonschema.validate(json.loads(call["arguments"]), schemas[call["name"]])
        if isinstance(body["tool_choice"], dict):
            assert call["name"] == body["tool_choice"]["function"]["name"]


def check_chunks(choice: dict[str, Any], tokenizer: Tokenizer, sizes: Sequence[int]) -> None:
    """For deltas of each size, calls are the same and none of their text is in the output text."""
    token_ids = choice["token_ids"]
    wanted = [one["function"] for one in choice["message"].get("tool_calls", ())]
    for size in sizes:
        if size > len(token_ids) and size != sizes[-1]:
            continue  # one delta, as with the largest size
        assembler, calls = OutputAssembler(tokenizer, SamplingParams(tool_format="deepseek_v3")), []
        for first in range(0, len(token_ids), size):
            some, last = tuple(token_ids[first : first + size]), first + size >= len(token_ids)
            ended = FinishReason.LENGTH if last else None
            stop = some[-1] if last and choice["finish_reason"] == "tool_calls" else None
            delta = assembler.add(SequenceChunk(request_id="", token_ids=some, finish_reason=ended, stop_token_id=stop))
            assert (delta.text, delta.reasoning) == ("", "")
            calls += delta.tool_calls
        assert [{"name": call.name, "arguments": call.arguments} for call in merged(calls)] == wanted


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_without_a_call_an_answer_is_text_and_streams_as_it_is_whole(scout: Served, choice: str) -> None:
    for number in range(5):
        body = {**request(number), "tool_choice": choice, "max_tokens": 40}
        whole = asked(scout, body)
        text = whole["message"]["content"] or ""
        with httpx.stream("POST", f"{scout.v1}/chat/completions", json={**body, "stream": True}, timeout=60) as stream:
            lines = [line.removeprefix("data: ") for line in stream.iter_lines() if line.startswith("data: {")]
        deltas = [one["choices"][0]["delta"] for one in map(json.loads, lines)]
        assert "".join(delta.get("content") or "" for delta in deltas) == text
        assert "｜" not in text
        if choice == "none":
            assert "tool_calls" not in whole["message"]


@pytest.mark.parametrize("page", ["README.md", "docs/http.md"])
def test_the_pages_example_of_tools_and_structured_outputs_runs(
    scout: Served, page: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).parents[3] / page).read_text()
    (example,) = [one for one in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "with Client(" in one]

    exec(compile(example.replace("localhost:50051", scout.address), page, "exec"), {})

    calls, choice = capsys.readouterr().out.splitlines()
    assert "name='get_weather'" in calls
    assert choice in ("a", "b")
