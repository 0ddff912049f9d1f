"""The grammar of an answer that may call functions, in llguidance's Lark dialect.

Calls conform to their schemas, and the special tokens of calls occur nowhere else.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from outrider.workers.text.tool_calls import AFTER_ARGUMENTS, BEFORE_ARGUMENTS
from outrider.workers.types.requests.structured_outputs import StructuredOutputsParams
from outrider.workers.types.requests.tools import Tool, ToolFormat, Tools, ToolTokens

_WHITESPACE = r"[ \n]{0,20}"  # between JSON tokens; bounded, so that an answer ends


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSyntax:
    """How a checkpoint writes calls. `think`: the tokens around reasoning, which may come first in an answer."""

    format: ToolFormat
    tokens: ToolTokens
    think: tuple[int, int] | None = None


def tool_grammar(tools: Tools, syntax: CallSyntax, answer: StructuredOutputsParams | None) -> StructuredOutputsParams:
    """`answer`: the constraint on an answer without calls. Raises ValueError if it is not `json` or `json_object`."""
    called = tools.callable
    content = "text" if answer is None else _rule_of(answer)
    must_call = tools.choice == "required" or bool(tools.function)
    may_think = syntax.think is not None and not must_call  # else the model would always choose reasoning over calls
    rules = [f"start: {'think? ' if may_think else ''}body"]
    if may_think and syntax.think is not None:
        rules.append(f"think: <[{syntax.think[0]}]> text <[{syntax.think[1]}]>")
    if not called:
        rules.append(f"body: {content}")
    elif must_call:
        rules.append("body: calls")
    else:
        rules.append("body: text calls?" if answer is None else f"body: {content} | calls")
    rules.append(r"text: /(?s:.*)/")
    if called:
        rules += _calls(called, syntax, parallel=tools.parallel)
    return StructuredOutputsParams(grammar="\n".join(rules))


def _rule_of(answer: StructuredOutputsParams) -> str:
    if answer.json is None and not answer.json_object:
        raise ValueError("structured_outputs must be json or json_object where tools are given")
    schema = json.loads(answer.source)
    return f"%json {json.dumps(_with_whitespace(schema))}" if isinstance(schema, Mapping) else "text"


def _calls(tools: list[Tool], syntax: CallSyntax, *, parallel: bool) -> list[str]:
    tokens, fenced = syntax.tokens, syntax.format is ToolFormat.V3
    more = (' ("\\n" call)*' if fenced else " call*") if parallel else ""
    one = f'"function" <[{tokens.sep}]> function' if fenced else "function"
    rules = [
        f"calls: <[{tokens.calls_begin}]> call{more} <[{tokens.calls_end}]>",
        f"call: <[{tokens.call_begin}]> {one} <[{tokens.call_end}]>",
        "function: " + " | ".join(f"function_{number}" for number in range(len(tools))),
    ]
    for number, tool in enumerate(tools):
        arguments = f"%json {json.dumps(_with_whitespace(tool.schema))}"
        before, after = json.dumps(tool.name + BEFORE_ARGUMENTS), json.dumps(AFTER_ARGUMENTS)
        name = f"{before} arguments_{number} {after}"
        rules += [
            f"function_{number}: {name if fenced else f'{json.dumps(tool.name)} <[{tokens.sep}]> arguments_{number}'}",
            f"arguments_{number}: {arguments}",
        ]
    return rules


def _with_whitespace(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {**schema, "x-guidance": {"whitespace_pattern": _WHITESPACE}}
