"""Whether xgrammar's own grammar of DeepSeek's tool calls accepts texts. Reads and prints JSON.

stdin: a list of [tools, tool_choice, parallel_tool_calls, text]; stdout: a list of booleans.
"""

import json
import sys
from typing import Any

from xgrammar import Grammar, GrammarCompiler, GrammarMatcher, TokenizerInfo, get_model_structural_tag

COMPILER = GrammarCompiler(TokenizerInfo([chr(code) for code in range(32, 127)]))  # texts are matched, no tokens


def accepts(tools: list[Any], choice: Any, parallel: bool, text: str) -> bool:
    tag = get_model_structural_tag(
        "deepseek_r1", tools=tools, tool_choice=choice, reasoning="disabled", parallel_tool_calls=parallel
    )
    grammar = COMPILER.compile_grammar(Grammar.from_structural_tag(tag))
    matcher = GrammarMatcher(grammar, terminate_without_stop_token=True)
    return bool(matcher.accept_string(text) and matcher.is_terminated())


print(json.dumps([accepts(*case) for case in json.load(sys.stdin)]))
