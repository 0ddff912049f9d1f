"""Settles at the edge what of a request's parameters only a tokenizer can say. LLM and gateway both use it.

Structured outputs are not its business: they are checked elsewhere, see grammar_check.py.
"""

from collections.abc import Sequence
from dataclasses import replace

from outrider.workers.text.bad_words import with_bad_words
from outrider.workers.text.tokenizer import Tokenizer
from outrider.workers.types.sampling_params import SamplingParams


def settled(params: SamplingParams, tokenizer: Tokenizer | None, prompt_token_ids: Sequence[int]) -> SamplingParams:
    """The parameters that the engine gets. ValueError names what cannot be settled."""
    params = with_bad_words(params, tokenizer)
    if params.reasoning and tokenizer is not None:
        return _with_reasoning(params, tokenizer, prompt_token_ids)
    return params


def _with_reasoning(params: SamplingParams, tokenizer: Tokenizer, prompt_token_ids: Sequence[int]) -> SamplingParams:
    """Reasoning that the prompt has closed already is none of the output's."""
    begin, end = tokenizer.reasoning_ids
    if end is None:
        raise ValueError("reasoning needs a tokenizer with a token for </think>, and this checkpoint's has none")
    last = next((token for token in reversed(prompt_token_ids) if token in (begin, end)), None)
    return replace(params, reasoning=False) if last == end else replace(params, reasoning_end_id=end)
