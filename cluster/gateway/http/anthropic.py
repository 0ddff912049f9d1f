"""/v1/messages: Anthropic's Messages API. Pure."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from outrider.cluster.api.chat_shapes import message_of, tools_of
from outrider.cluster.api.generation import Accepted, ChatPrompt, Event, Finished, GenerateCall, Generation, Output
from outrider.cluster.gateway.http import sse
from outrider.cluster.gateway.http.answer import finish_reason, metrics_of
from outrider.cluster.gateway.http.errors import Problem
from outrider.cluster.gateway.http.sampling import params_of, speculated
from outrider.cluster.gateway.http.types import MessagesRequest
from outrider.workers.text.assembler import Usage
from outrider.workers.types.requests.tools import Tools

Turn = tuple[str, dict[str, Any]]  # its place in the request, and a message in OpenAI's shape
_ROLES = ("user", "assistant", "system")
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class MessagesAnswer:
    """One message. A stream sends its content blocks in order: thinking, text, tool calls."""

    def __init__(self, request: MessagesRequest, model: str, identity: str) -> None:
        """ValueError names the field that is invalid."""
        self._model, self._identity = model, f"msg_{identity}"
        self.streams = bool(request.stream)
        self.calls = [messages_call(request, identity)]
        self._block = -1  # index of the open block
        self._kind: object = None  # of the open block: "thinking", "text", or a call's index
        self._stop: tuple[str, str | None] = ("end_turn", None)
        self._called = False

    def chunks(self, number: int, event: Event, prompt: Sequence[int]) -> Iterator[bytes]:
        match event:
            case Accepted():
                usage = {"input_tokens": event.prompt_tokens, "output_tokens": 0}
                message = {**self._message([], None, None), "usage": usage}
                yield sse.event("message_start", {"type": "message_start", "message": message})
            case Output():
                if event.reasoning:
                    yield from self._open("thinking", {"type": "thinking", "thinking": "", "signature": ""})
                    yield self._delta({"type": "thinking_delta", "thinking": event.reasoning})
                if event.text:
                    yield from self._open("text", {"type": "text", "text": ""})
                    yield self._delta({"type": "text_delta", "text": event.text})
                for call in event.tool_calls:
                    self._called = True
                    block = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
                    yield from self._open(call.index, block)
                    yield self._delta({"type": "input_json_delta", "partial_json": call.arguments})
            case Finished(usage=usage) if usage is not None:
                yield from self._close()
                reason, sequence = _stop(event.reason.value, event.stop_reason, called=self._called)
                delta = {"stop_reason": reason, "stop_sequence": sequence}
                metrics = {"metrics": metrics_of([usage], 1)}
                content = {"type": "message_delta", "delta": delta, "usage": _usage(usage), **metrics}
                yield sse.event("message_delta", content)
            case _:
                return

    def end(self) -> Iterator[bytes]:
        yield sse.event("message_stop", {"type": "message_stop"})

    def failure(self, problem: Problem) -> Iterator[bytes]:
        yield sse.event("error", problem.anthropic())

    def whole(self, generations: Sequence[Generation], prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
        (generation,) = generations
        (output,) = generation.outputs
        content: list[dict[str, Any]] = []
        if output.reasoning:
            content.append({"type": "thinking", "thinking": output.reasoning, "signature": ""})
        if output.text or not output.tool_calls:
            content.append({"type": "text", "text": output.text})
        content += [
            {"type": "tool_use", "id": call.id, "name": call.name, "input": _input(call.arguments)}
            for call in output.tool_calls
        ]
        reason, sequence = _stop(output.finish_reason, output.stop_reason, called=bool(output.tool_calls))
        usage, metrics = _usage(generation.usage), metrics_of([generation.usage], 1)
        return {**self._message(content, reason, sequence), "usage": usage, "metrics": metrics}

    def _message(self, content: list[Any], reason: str | None, sequence: str | None) -> dict[str, Any]:
        return {
            "id": self._identity,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": sequence,
        }

    def _open(self, kind: object, block: dict[str, Any]) -> Iterator[bytes]:
        """Closes the open block and opens a new one, unless the open block has this kind."""
        if kind == self._kind:
            return
        yield from self._close()
        self._kind = kind
        self._block += 1
        started = {"type": "content_block_start", "index": self._block, "content_block": block}
        yield sse.event("content_block_start", started)

    def _close(self) -> Iterator[bytes]:
        if self._kind is not None:
            self._kind = None
            yield sse.event("content_block_stop", {"type": "content_block_stop", "index": self._block})

    def _delta(self, delta: dict[str, Any]) -> bytes:
        content = {"type": "content_block_delta", "index": self._block, "delta": delta}
        return sse.event("content_block_delta", content)


def _usage(usage: Usage) -> dict[str, Any]:
    """Anthropic's input_tokens does not include cached tokens."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def _stop(reason: str, stop: int | str | None, *, called: bool) -> tuple[str, str | None]:
    word = finish_reason(reason, called=called)
    if word == "stop" and isinstance(stop, str):
        return "stop_sequence", stop
    return {"length": "max_tokens", "tool_calls": "tool_use"}.get(word, "end_turn"), None


def _input(arguments: str) -> Any:
    """Empty for a call that was cut off, whose arguments are not valid JSON."""
    try:
        return json.loads(arguments)
    except ValueError:
        return {}


def messages_call(request: MessagesRequest, identity: str) -> GenerateCall:
    """ValueError names the field that is invalid."""
    if request.max_tokens is None:
        raise ValueError("max_tokens must be given")
    values = {
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "seed": request.seed,
        "stop": request.stop_sequences,
        **speculated(request.speculation, request.drafter),
    }
    return GenerateCall(prompt=chat_prompt(request), params=params_of(values), request_id=identity, auto_reasoning=True)


def chat_prompt(request: MessagesRequest) -> ChatPrompt:
    """ValueError names the field that is invalid."""
    system = [] if request.system is None else [("system", {"role": "system", "content": _texts(request.system)})]
    turns = [turn for number, message in enumerate(request.messages) for turn in _turns(f"messages[{number}]", message)]
    thinking = {} if request.thinking is None else {"thinking": request.thinking.type != "disabled"}
    arguments = {**thinking, **(request.chat_template_kwargs or {})}
    return ChatPrompt(tuple(message_of(*turn) for turn in (*system, *turns)), _tools(request), arguments)


def _tools(request: MessagesRequest) -> Tools:
    given = []
    for number, tool in enumerate(request.tools or ()):
        if not isinstance(tool.get("input_schema"), Mapping):
            raise ValueError(f"tools[{number}] has no input_schema: only functions can be called here")
        function = {"name": tool.get("name"), "description": tool.get("description")}
        given.append({"function": {**function, "parameters": tool["input_schema"]}})
    choice = request.tool_choice or {"type": "auto"}
    parallel = choice.get("disable_parallel_tool_use") is not True
    kind = choice.get("type")
    if kind == "tool":
        return tools_of(given, {"function": {"name": choice.get("name")}}, parallel=parallel)
    if not isinstance(kind, str) or kind not in _CHOICES:
        raise ValueError(f"tool_choice.type must be auto, any, tool or none, got {str(kind)[:100]!r}")
    return tools_of(given, _CHOICES[kind], parallel=parallel)


def _turns(where: str, message: Mapping[str, Any]) -> Iterator[Turn]:
    """A message as chat turns. Each tool result in it is a separate turn, before the message's text."""
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        raise ValueError(f"{where}.role must be one of {', '.join(_ROLES)}, got {str(role)[:100]!r}")
    if not isinstance(content, list):
        yield where, {"role": role, "content": content}
        return
    texts, thoughts, calls = [], [], []
    for number, block in enumerate(content):
        place, kind = f"{where}.content[{number}]", block.get("type") if isinstance(block, Mapping) else None
        if kind == "tool_result":
            result = {"role": "tool", "tool_call_id": _text(place, block, "tool_use_id")}
            yield place, {**result, "content": _texts(block.get("content") or "")}
        elif kind == "tool_use":
            function = {"name": _text(place, block, "name"), "arguments": json.dumps(block.get("input") or {})}
            calls.append({"id": _text(place, block, "id"), "function": function})
        elif kind == "thinking":
            thoughts.append(str(block.get("thinking") or ""))
        elif kind != "redacted_thinking":
            texts.append(block)
    if texts or calls or thoughts:
        yield where, {"role": role, "content": _texts(texts), "tool_calls": calls, "reasoning": "".join(thoughts)}


def _text(where: str, block: Mapping[str, Any], name: str) -> str:
    value = block.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{where}.{name} must be a text, got {type(value).__name__}")
    return value


def _texts(given: object) -> Any:
    """The text of text blocks. Other blocks are passed on, for message_of to reject."""
    if not isinstance(given, list):
        return given
    return [
        block.get("text") if isinstance(block, Mapping) and block.get("type") == "text" else block for block in given
    ]
