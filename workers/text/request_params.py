"""Completes a request's sampling parameters with what needs a tokenizer. Used by LLM and gateway.

Structured outputs are checked elsewhere: grammar_check.py.
"""

from collections.abc import Sequence
from dataclasses import replace

from outrider.workers.text.bad_words import with_bad_words
from outrider.workers.text.tokenizer import Tokenizer
from outrider.workers.text.tool_grammar import CallSyntax, tool_grammar
from outrider.workers.types.requests.sampling_params import SamplingParams
from outrider.workers.types.requests.tools import Tools

_NO_TOOLS = Tools()


def resolved_params(
    params: SamplingParams,
    tokenizer: Tokenizer | None,
    prompt_token_ids: Sequence[int],
    tools: Tools = _NO_TOOLS,
    *,
    auto_reasoning: bool = False,
) -> SamplingParams:
    """The parameters for the engine. Raises ValueError that names a parameter that cannot be resolved.

    `auto_reasoning`: an output starts with reasoning if the prompt ends in `<think>` or the output begins with it.
    """
    params = with_bad_words(params, tokenizer)
    if tokenizer is not None:
        if params.reasoning:
            params = _with_reasoning(params, tokenizer, prompt_token_ids)
        elif auto_reasoning:
            params = _with_auto_reasoning(params, tokenizer, prompt_token_ids)
    return _with_tools(params, tokenizer, tools) if tools else params


def _with_reasoning(params: SamplingParams, tokenizer: Tokenizer, prompt_token_ids: Sequence[int]) -> SamplingParams:
    """Enables reasoning, unless the prompt has ended it with `</think>` already."""
    begin, end = tokenizer.reasoning_ids
    if end is None:
        raise ValueError("reasoning needs a tokenizer with a token for </think>, and this checkpoint's has none")
    last = next((token for token in reversed(prompt_token_ids) if token in (begin, end)), None)
    return replace(params, reasoning=False) if last == end else replace(params, reasoning_end_id=end)


def _with_auto_reasoning(
    params: SamplingParams, tokenizer: Tokenizer, prompt_token_ids: Sequence[int]
) -> SamplingParams:
    begin, end = tokenizer.reasoning_ids
    if begin is None or end is None:
        return params
    texts = ((token, tokenizer.token_text(token)) for token in reversed(prompt_token_ids))
    last = next((token for token, text in texts if text.strip()), None)
    if last == begin:
        return replace(params, reasoning=True, reasoning_end_id=end)
    return params if last == end else replace(params, reasoning_begin_id=begin)


def _with_tools(params: SamplingParams, tokenizer: Tokenizer | None, tools: Tools) -> SamplingParams:
    """Adds the grammar of tool calls. If the prompt began reasoning, the grammar applies after `</think>`."""
    if tokenizer is None or tokenizer.tool_tokens is None:
        raise ValueError("tools need a tokenizer with tokens for calls, and this checkpoint has none")
    begin, end = tokenizer.reasoning_ids
    may_think = params.reasoning_begin_id is not None and begin is not None and end is not None
    syntax = CallSyntax(
        format=tokenizer.tool_format,
        tokens=tokenizer.tool_tokens,
        think=(begin, end) if may_think and begin is not None and end is not None else None,
    )
    grammar = tool_grammar(tools, syntax, params.structured_outputs)
    return replace(params, structured_outputs=grammar, tool_format=syntax.format.value)
