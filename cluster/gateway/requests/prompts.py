"""Turns what a client sent into token ids, with the served checkpoint's own tokenizer."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from outrider.cluster.api.generation import ChatPrompt, GenerateCall, Message, Prompt, TextPrompt, TokenPrompt
from outrider.workers.text.edge import settled
from outrider.workers.text.grammar_check import GrammarChecker
from outrider.workers.text.tokenizer import Tokenizer
from outrider.workers.types import hub
from outrider.workers.types.errors import CheckpointError
from outrider.workers.types.sampling_params import SamplingParams
from outrider.workers.types.structured_outputs import StructuredOutputsParams
from outrider.workers.types.tools import Arguments, Tools


class PromptEncoder:
    """Without a tokenizer it takes token ids only."""

    def __init__(self, tokenizer: Tokenizer | None, checker: GrammarChecker | None = None) -> None:
        """`checker`: of grammars, for the same tokenizer; without it none is refused here."""
        self.tokenizer, self._checker = tokenizer, checker

    @classmethod
    def load(cls, path: str) -> Self:
        """CheckpointError if the checkpoint is not on this machine nor on the Hub, or its tokenizer is damaged."""
        folder = hub.fetch(path, weights=False) if hub.is_on_hub(path) else Path(path)
        if not folder.is_dir():
            raise CheckpointError(f"no directory {folder} on the gateway's machine: the tokenizer is read from there")
        return cls(Tokenizer.load(folder), GrammarChecker(folder / "tokenizer.json"))

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Takes its time. ValueError names `prompt`, `token_ids` or `messages`, whichever it was."""
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

    def settle(self, call: GenerateCall, prompt_token_ids: Sequence[int]) -> SamplingParams:
        """The parameters that the engine gets. ValueError names what cannot be settled."""
        tools = tools_in(call)
        return settled(call.params, self.tokenizer, prompt_token_ids, tools, auto_reasoning=call.auto_reasoning)

    async def check_grammar(self, params: SamplingParams, tools: Tools) -> None:
        """ValueError or OverloadedError if there is one that cannot be followed, or not be checked now. `tools`: what
        the grammar was made of, if it was; the error names the one whose schema is wrong."""
        if params.structured_outputs is None:
            return
        try:
            await self._check(params.structured_outputs)
        except ValueError:
            for tool in tools.callable:
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
    """A message as chat templates expect it. Absent fields are left out, since templates test whether they exist."""
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
    """The field of the request that holds it."""
    match prompt:
        case TextPrompt():
            return "prompt"
        case TokenPrompt():
            return "token_ids"
        case ChatPrompt():
            return "messages"
