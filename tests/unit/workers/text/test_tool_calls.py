"""Calls that a model writes are read as it wrote them, however its tokens are grouped, and nothing of them is text."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizer import load_tokenizer

from outrider.workers.text.assembler import OutputAssembler
from outrider.workers.text.chat import ChatTemplate
from outrider.workers.text.request_params import resolved_params
from outrider.workers.text.tokenizer import Tokenizer
from outrider.workers.text.tool_calls import merged
from outrider.workers.types.requests.request import FinishReason, SequenceChunk
from outrider.workers.types.requests.sampling_params import SamplingParams
from outrider.workers.types.requests.tools import Tool, ToolCallDelta, ToolFormat, Tools

TEMPLATES = Path("workers/text/templates")
THOUGHT = "<think>the quick fox</think>"
TEXT = st.text(
    st.characters(exclude_characters="<", exclude_categories=["Cs"])
)  # a grammar lets no special token stand in it
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
)
CALLS = st.lists(
    st.tuples(st.from_regex(r"\A[A-Za-z0-9_.-]{1,20}\Z"), st.dictionaries(TEXT, VALUES)), min_size=1, max_size=4
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def written(calls: list[tuple[str, str]], format: ToolFormat) -> str:
    """As a model of that format writes calls."""
    if format is ToolFormat.V3:
        each = [
            f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{n}\n```json\n{a}\n```<｜tool▁call▁end｜>" for n, a in calls
        ]
        return "<｜tool▁calls▁begin｜>" + "\n".join(each) + "<｜tool▁calls▁end｜>"
    each = [f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{arguments}<｜tool▁call▁end｜>" for name, arguments in calls]
    return "<｜tool▁calls▁begin｜>" + "".join(each) + "<｜tool▁calls▁end｜>"


def read(
    tokenizer: Tokenizer, token_ids: list[int], params: SamplingParams, chunk: int
) -> tuple[str, str, tuple[ToolCallDelta, ...]]:
    """Text, reasoning and calls of an output that comes `chunk` tokens at a time."""
    assembler = OutputAssembler(tokenizer, params)
    text, reasoning, calls = "", "", []
    for first in range(0, len(token_ids), chunk):
        some = tuple(token_ids[first : first + chunk])
        ended = FinishReason.STOP if first + chunk >= len(token_ids) else None
        delta = assembler.add(SequenceChunk(request_id="", token_ids=some, finish_reason=ended))
        text, reasoning, calls = text + delta.text, reasoning + delta.reasoning, calls + list(delta.tool_calls)
    return text, reasoning, merged(calls)


@pytest.mark.parametrize("format", ToolFormat)
@given(
    calls=CALLS,
    before=st.sampled_from(["", "the lazy dog 你好", "{\n"]),
    chunk=st.integers(1, 1000),
    thinks=st.booleans(),
)
def test_calls_are_read_whole_and_leak_nowhere(
    small: Tokenizer, format: ToolFormat, calls: list[tuple[str, object]], before: str, chunk: int, thinks: bool
) -> None:
    said = [(name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in calls]
    token_ids = small.encode_part((THOUGHT if thinks else "") + before + written(said, format))
    params = SamplingParams(tool_format=format.value, reasoning_begin_id=small.reasoning_ids[0], stop="quick 你")

    text, reasoning, found = read(small, token_ids, params, chunk)

    assert text == before
    assert reasoning == ("the quick fox" if thinks else "")
    assert [(call.name, call.arguments) for call in found] == said
    assert [call.index for call in found] == list(range(len(said)))


@pytest.mark.parametrize("format", ToolFormat)
def test_a_call_that_is_cut_off_gives_what_it_had(small: Tokenizer, format: ToolFormat) -> None:
    whole = small.encode_part(written([("add", '{"left": 1, "right": 2}')], format))
    params = SamplingParams(tool_format=format.value)
    for length in range(len(whole)):
        text, _, found = read(small, whole[:length], params, 3)
        assert text == ""
        assert all(call.name == "add" and '{"left": 1, "right": 2}\n```'.startswith(call.arguments) for call in found)


def test_calls_inside_reasoning_are_reasoning(small: Tokenizer) -> None:
    token_ids = small.encode_part("fox" + written([("add", "{}")], ToolFormat.V31) + "</think>dog")
    end = small.reasoning_ids[1]
    params = SamplingParams(tool_format="deepseek_v31", reasoning=True, reasoning_end_id=end)

    text, reasoning, found = read(small, token_ids, params, 1)

    assert (text, found) == ("dog", ())
    assert reasoning.startswith("fox")


@pytest.mark.parametrize(
    ("prompt", "reasons", "may_begin"),
    [
        ("a<｜Assistant｜><think>\n", True, False),
        ("a<｜Assistant｜></think>", False, False),
        ("</think>a", False, True),
    ],
)
def test_reasoning_is_found_where_prompt_or_output_begins_it(
    small: Tokenizer, prompt: str, reasons: bool, may_begin: bool
) -> None:
    params = resolved_params(SamplingParams(), small, small.encode(prompt), auto_reasoning=True)

    assert params.reasoning is reasons
    assert (params.reasoning_begin_id is not None) is may_begin


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ({"tools": [Tool(name="a"), Tool(name="a")]}, "distinct"),
        ({"tools": [Tool(name="a")], "function": "b"}, "not among the tools"),
        ({"tools": [Tool(name="a")], "choice": "perhaps"}, "tool_choice must be"),
        ({"choice": "required"}, "without tools"),
    ],
)
def test_tools_that_cannot_be_are_refused(tools: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tools(**tools)  # type: ignore[arg-type]
    for name in ("", "a b", "a\n", "<｜tool▁sep｜>", "x" * 129):
        with pytest.raises(ValueError, match="name must be"):
            Tool(name=name)


@pytest.mark.parametrize("format", ToolFormat)
def test_a_bundled_template_names_the_tools_and_writes_calls_as_the_model_does(format: ToolFormat) -> None:
    special = {"bos_token": "<B>", "eos_token": "<E>", "after_assistant": "<think>\n"}
    template = ChatTemplate((TEMPLATES / f"{format.value}.jinja").read_text(), special)
    call = {"type": "function", "function": {"name": "add", "arguments": '{"left": 1}'}}
    turns = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "hm</think>let me see", "tool_calls": [call, call]},
        {"role": "tool", "content": "2", "tool_call_id": "x"},
        {"role": "tool", "content": "3"},
    ]
    tool = replace(Tool(name="add", description="adds"), parameters={"properties": {"left": {"type": "integer"}}})

    text = template.render(turns, [tool.to_dict()], {"thinking": True})

    assert text.startswith("<B>be kind")
    assert '{"properties": {"left"' in text or '"properties": {"left"' in text
    assert "let me see" + written([("add", '{"left": 1}')] * 2, format) + "<E>" in text
    assert "hm" not in text
    results = "<｜tool▁output▁begin｜>2<｜tool▁output▁end｜>"
    assert results in text
    assert "<｜Assistant｜>" not in text[text.index(results) :]
    asked = template.render(turns[:2], [], {"thinking": True})
    assert asked.endswith("<｜User｜>1 + 1?<｜Assistant｜><think>" + ("\n" if format is ToolFormat.V3 else ""))
    if format is ToolFormat.V31:
        assert template.render(turns[:2]).endswith("<｜Assistant｜></think>")
