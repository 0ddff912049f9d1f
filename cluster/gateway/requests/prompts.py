"""Converts prompts to token ids with the served checkpoint's tokenizer."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from outrider.cluster.api.generation import ChatPrompt, GenerateCall, Message, Prompt, TextPrompt, TokenPrompt
from outrider.workers.text.grammar_check import GrammarChecker
from outrider.workers.text.request_params import resolved_params
from outrider.workers.text.tokenizer import Tokenizer
from outrider.workers.types.errors import CheckpointError
from outrider.workers.types.model import hub
from outrider.workers.types.requests.sampling_params import SamplingParams
from outrider.workers.types.requests.structured_outputs import StructuredOutputsParams
from outrider.workers.types.requests.tools import Arguments, Tools

_TOOLS_CHECKED = 8  # to name an invalid one: each check may take up to 2 s


class PromptEncoder:
    """Encodes prompts. Without a tokenizer it accepts only token ids."""

    def __init__(self, tokenizer: Tokenizer | None, checker: GrammarChecker | None = None) -> None:
        """`checker`: checks grammars for the same tokenizer; None: grammars are not checked here."""
        self.tokenizer, self._checker = tokenizer, checker

    @classmethod
    def load(cls, path: str) -> Self:
        """Raises CheckpointError if the checkpoint is neither on this machine nor on the Hub, or is damaged."""
        folder = hub.fetch(path, weights=False) if hub.is_on_hub(path) else Path(path)
        if not folder.is_dir():
            raise CheckpointError(f"no directory {folder} on the gateway's machine, from which it reads the tokenizer")
        return cls(Tokenizer.load(folder), GrammarChecker(folder / "tokenizer.json"))

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Slow for long prompts. Raises ValueError, which names `prompt`, `token_ids` or `messages`."""
        match prompt:
            case TokenPrompt(token_ids):
                return tuple(token_ids)
            case TextPrompt(text):
                tokenizer = self._tokenizer("prompt")
                if not text:
                    raise ValueError("prompt must not be empty")
                return tuple(tokenizer.encode(text))
            case ChatPrompt(messages, tools, arguments):
                tokenizer = self._tokenizer("messages")
                turns, functions = [_turn(message) for message in messages], [tool.to_dict() for tool in tools.tools]
                return tuple(tokenizer.encode_chat(turns, functions, arguments))

    def engine_params(self, call: GenerateCall, prompt_token_ids: Sequence[int]) -> SamplingParams:
        """The parameters for the engine. Raises ValueError, which names an invalid parameter."""
        tools = tools_in(call)
        return resolved_params(call.params, self.tokenizer, prompt_token_ids, tools, auto_reasoning=call.auto_reasoning)

    async def check_grammar(self, params: SamplingParams, tools: Tools) -> None:
        """Raises ValueError if the grammar is not supported, OverloadedError if it cannot be checked now.

        `tools`: those that the grammar was made of. If the schema of one of the first is invalid, the error names it.
        """
        if params.structured_outputs is None:
            return
        try:
            await self._check(params.structured_outputs)
        except ValueError:
            for tool in tools.callable[:_TOOLS_CHECKED]:
                try:
                    await self._check(StructuredOutputsParams(json=tool.schema))
                except ValueError as error:
                    reason = str(error).removeprefix("structured_outputs ")
                    raise ValueError(f"tools: the parameters of {tool.name} {reason}") from None
            raise

    async def _check(self, constraint: StructuredOutputsParams) -> None:
        if self._checker is not None:
            await asyncio.wrap_future(self._checker.submit(constraint))

    def close(self) -> None:
        if self._checker is not None:
            self._checker.close()

    def _tokenizer(self, name: str) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError(f"{name} needs a tokenizer, and this checkpoint has none: send token_ids")
        return self.tokenizer


def _turn(message: Message) -> dict[str, Any]:
    """A message for chat templates. Absent fields are omitted, since templates test whether they exist."""
    content = message.content if isinstance(message.content, str) else "\n".join(message.content)
    turn: dict[str, Any] = {"role": message.role, "content": content}
    if message.tool_calls:
        turn["tool_calls"] = [
            {"id": one.id, "type": "function", "function": {"name": one.name, "arguments": Arguments(one.arguments)}}
            for one in message.tool_calls
        ]
    others = {"tool_call_id": message.tool_call_id, "name": message.name, "reasoning_content": message.reasoning}
    return turn | {name: value for name, value in others.items() if value}


def tools_in(call: GenerateCall) -> Tools:
    return call.prompt.tools if isinstance(call.prompt, ChatPrompt) else Tools()


def prompt_name(prompt: Prompt) -> str:
    """Name of the request's field with the prompt."""
    match prompt:
        case TextPrompt():
            return "prompt"
        case TokenPrompt():
            return "token_ids"
        case ChatPrompt():
            return "messages"
