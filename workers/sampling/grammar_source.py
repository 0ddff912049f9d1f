"""Translates a constraint to llguidance's input, and sets limits on its cost. Imports only modules that load fast."""

import json
from collections.abc import Mapping
from typing import Any

import llguidance
from llguidance import LLMatcher, LLParserLimits

from outrider.workers.types.requests.structured_outputs import StructuredOutputsParams

# Lexer states are created while outputs are matched and never freed: about 1 kB each.
LIMITS = LLParserLimits(
    max_grammar_size=100_000, step_lexer_fuel=100_000, max_lexer_states=20_000, verbose_errors=False
)


def grammar_of(params: StructuredOutputsParams) -> str:
    """The constraint as llguidance's input. Raises ValueError if it is malformed."""
    if params.regex is not None:
        return LLMatcher.grammar_from_regex(params.regex)
    if params.grammar is not None:
        return str(llguidance.grammar_from("grammar", params.grammar))
    if params.choice is not None:
        return str(llguidance.grammar_from("choice", params.source))
    options: dict[str, Any] = {"whitespace_flexible": not params.disable_any_whitespace}
    if params.whitespace_pattern is not None:
        options["whitespace_pattern"] = params.whitespace_pattern
    schema = json.loads(params.source)
    if not isinstance(schema, Mapping | bool):
        raise ValueError(f"a JSON schema is an object, got {schema!r}")
    return LLMatcher.grammar_from_json_schema(params.source, overrides=options)  # type: ignore[arg-type]  # a TypedDict there
