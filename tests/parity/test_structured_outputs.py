"""What scout writes under a grammar is valid, by another's judgement, with drafts as without, also behind </think>."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outrider import LLM, SamplingParams
from outrider.workers.text.outputs import CompletionOutput

THINK_END = 6
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "kind": {"enum": ["function", "class", "module"]},
        "lines": {"type": "integer", "minimum": 1, "maximum": 999},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{1,8}$"}, "maxItems": 3},
    },
    "required": ["name", "kind", "lines", "tags"],
    "additionalProperties": False,
}
REGEX = r"[a-z]{3,20}( [a-z]{1,10}){1,4}[.]"
CONSTRAINTS: dict[str, dict[str, Any]] = {
    "json": {"json": SCHEMA, "disable_any_whitespace": True},
    "regex": {"regex": REGEX},
    "choice": {"choice": ["a list of integers", "a list", "an iterator of strings"]},
    "grammar": {
        "grammar": 'start: call ("; " call)~0..2\ncall: name "(" (name "()" | NUMBER)? ")"\n'
        "name: /[a-z_]{1,12}/\nNUMBER: /[0-9]{1,4}/"
    },
}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("scout") as llm:
        yield llm


def prompts(count: int) -> list[str]:
    texts = json.loads((Path(__file__).parents[2] / "cluster" / "client" / "prompts.json").read_text())
    both = [*texts["code"], *texts["prose"]]
    return [both[i % len(both)] for i in range(count)]


def outputs(llm: LLM, count: int, **params: Any) -> list[CompletionOutput]:
    each = [SamplingParams(**{"temperature": 0.8, "seed": i, "max_tokens": 200, **params}) for i in range(count)]
    return [out.outputs[0] for out in llm.generate(prompts(count), each)]


def is_valid(kind: str, text: str) -> bool:
    if kind == "json":
        return fits_schema(json.loads(text))
    if kind == "choice":
        return text in CONSTRAINTS["choice"]["choice"]
    if kind == "regex":
        return re.fullmatch(REGEX, text) is not None
    calls = text.split("; ")
    return len(calls) <= 3 and all(re.fullmatch(r"[a-z_]{1,12}\(([a-z_]{1,12}\(\)|\d{1,4})?\)", call) for call in calls)


def fits_schema(value: Any) -> bool:
    return (
        list(value) == ["name", "kind", "lines", "tags"]
        and 1 <= len(value["name"]) <= 12
        and value["kind"] in ("function", "class", "module")
        and type(value["lines"]) is int
        and 1 <= value["lines"] <= 999
        and len(value["tags"]) <= 3
        and all(re.fullmatch("[a-z]{1,8}", tag) for tag in value["tags"])
    )


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("count", [8, pytest.param(50, marks=pytest.mark.full)])
@pytest.mark.parametrize("kind", CONSTRAINTS)
def test_every_output_under_a_grammar_is_valid_and_drafts_of_it_are_accepted(llm: LLM, kind: str, count: int) -> None:
    found = outputs(llm, count, structured_outputs=CONSTRAINTS[kind], speculation=4)

    assert [out.finish_reason for out in found] == ["stop"] * count
    for out in found:
        assert is_valid(kind, out.text), out.text
    counts = [out.speculation for out in found if out.speculation]
    assert sum(c.accepted for c in counts) > 0.2 * sum(c.drafted for c in counts)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("count", [8, pytest.param(200, marks=pytest.mark.full)])
def test_behind_reasoning_the_answer_is_valid_also_where_the_border_is_inside_a_draft(llm: LLM, count: int) -> None:
    params = {
        "reasoning": True, "structured_outputs": CONSTRAINTS["regex"], "logit_bias": {THINK_END: 17.0}, "min_tokens": 3,
    }  # fmt: skip
    plain = outputs(llm, count, speculation="off", **params)

    inside = 0
    for place, (prompt, wanted) in enumerate(zip(prompts(count), plain, strict=True)):
        own = SamplingParams(**{"temperature": 0.8, "seed": place, "max_tokens": 200, "speculation": 6, **params})
        deltas = list(llm.stream(prompt, own))
        assert [token for delta in deltas for token in delta.token_ids] == wanted.token_ids
        assert "".join(delta.text for delta in deltas) == wanted.text
        assert "".join(delta.reasoning for delta in deltas) == wanted.reasoning
        inside += any(THINK_END in delta.token_ids[:-1] for delta in deltas)
        if THINK_END in wanted.token_ids:
            assert is_valid("regex", wanted.text), wanted.text
            assert "</think>" not in wanted.text + wanted.reasoning
    assert sum(THINK_END in out.token_ids for out in plain) > count / 2
    assert inside > count / 8, "the border was never inside a draft: the test is too easy"


def test_a_prompt_that_has_closed_its_reasoning_is_answered_under_the_grammar_at_once(llm: LLM) -> None:
    assert llm.tokenizer is not None
    prompt = [*llm.tokenizer.encode("<think>hm"), THINK_END]
    params = SamplingParams(
        structured_outputs={"choice": ["yes", "no"]},
        reasoning=True,
        seed=1,
        max_tokens=9,  # type: ignore[arg-type]
    )

    out = llm.generate([prompt], params)[0].outputs[0]

    assert (out.text in ("yes", "no"), out.reasoning) == (True, "")


def test_a_grammar_that_cannot_be_followed_refuses_the_whole_call(llm: LLM) -> None:
    with pytest.raises(ValueError, match="structured_outputs cannot be followed"):
        llm.generate("x", SamplingParams(structured_outputs={"regex": "("}))  # type: ignore[arg-type]  # a mapping


def test_a_json_object_is_one(llm: LLM) -> None:
    """Cut by max_tokens it need not be whole."""
    for out in outputs(llm, 4, structured_outputs={"json_object": True}, max_tokens=60):
        assert out.text.lstrip().startswith("{")
        if out.finish_reason == "stop":
            assert isinstance(json.loads(out.text), dict)
