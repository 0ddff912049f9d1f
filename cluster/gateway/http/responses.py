"""/v1/responses: OpenAI's Responses API, without stored responses. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from outrider.cluster.api.chat_shapes import message_of, tools_of
from outrider.cluster.api.generation import (
    Accepted,
    ChatPrompt,
    Event,
    Finished,
    GenerateCall,
    Generation,
    Message,
    Output,
)
from outrider.cluster.gateway.http import sse
from outrider.cluster.gateway.http.answer import finish_reason, metrics_of, now, reasoning_tokens
from outrider.cluster.gateway.http.chat import template_arguments
from outrider.cluster.gateway.http.errors import Problem
from outrider.cluster.gateway.http.sampling import params_of, speculated, structured
from outrider.cluster.gateway.http.types import ResponseFormat, ResponsesRequest, TextOptions
from outrider.workers.text.assembler import Usage
from outrider.workers.text.tokenizer import Tokenizer

_STATEFUL = ("previous_response_id", "conversation", "background")  # need stored responses
_ROLES = ("user", "assistant", "system", "developer")


@dataclass
class _Item:
    """An output item, to which a stream appends. `call_id` and `name`: of function calls only."""

    kind: str  # "reasoning", "message" or "function_call"
    identity: str
    call_id: str = ""
    name: str = ""
    parts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.parts)

    def content(self) -> dict[str, Any]:
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": self.text}
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": []}

    def as_dict(self, status: str) -> dict[str, Any]:
        if self.kind == "function_call":
            call = {"call_id": self.call_id, "name": self.name, "arguments": self.text}
            return {"type": self.kind, "id": self.identity, **call, "status": status}
        content = [self.content()] if self.parts else []
        if self.kind == "reasoning":
            return {"type": self.kind, "id": self.identity, "summary": [], "content": content, "status": status}
        return {"type": self.kind, "id": self.identity, "role": "assistant", "content": content, "status": status}


class ResponsesAnswer:
    """One response."""

    def __init__(self, request: ResponsesRequest, model: str, identity: str, tokenizer: Tokenizer | None) -> None:
        """ValueError names the field that is invalid."""
        self._request, self._model, self._identity, self._tokenizer = request, model, identity, tokenizer
        self._created = now()
        self.streams = bool(request.stream)
        self.calls = [responses_call(request, identity)]
        self._items: list[_Item] = []
        self._call = -1  # index of the latest function call
        self._tokens: list[int] = []
        self._events = -1  # sequence number of the last event

    def chunks(self, number: int, event: Event, prompt: Sequence[int]) -> Iterator[bytes]:
        match event:
            case Accepted():
                for name in ("response.created", "response.in_progress"):
                    yield self._event(name, response=self._response("in_progress", None, None))
            case Output():
                self._tokens += event.token_ids
                if event.reasoning:
                    yield from self._append("reasoning", event.reasoning)
                if event.text:
                    yield from self._append("message", event.text)
                for call in event.tool_calls:
                    if call.index != self._call:
                        self._call = call.index
                        yield from self._begin(_Item("function_call", f"fc_{call.id}", call.id, call.name))
                    yield from self._append("function_call", call.arguments)
            case Finished(usage=usage) if usage is not None:
                yield from self._close()
                cut = finish_reason(event.reason) == "length"
                name = "incomplete" if cut else "completed"
                yield self._event(f"response.{name}", response=self._response(name, usage, metrics_of([usage], 1)))
            case _:
                return

    def end(self) -> Iterator[bytes]:
        yield from ()

    def failure(self, problem: Problem) -> Iterator[bytes]:
        yield self._event("error", code=problem.code, message=problem.message, param=problem.param)

    def whole(self, generations: Sequence[Generation], prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
        (generation,) = generations
        (output,) = generation.outputs
        self._tokens = output.token_ids
        for kind, text in (("reasoning", output.reasoning), ("message", output.text)):
            if text:
                self._items.append(_Item(kind, self._item_id(kind), parts=[text]))
        for call in output.tool_calls:
            self._items.append(_Item("function_call", f"fc_{call.id}", call.id, call.name, [call.arguments]))
        status = "incomplete" if finish_reason(output.finish_reason) == "length" else "completed"
        return self._response(status, generation.usage, metrics_of([generation.usage], 1))

    def _item_id(self, kind: str) -> str:
        return f"{'rs' if kind == 'reasoning' else 'msg'}_{self._identity}"

    def _begin(self, item: _Item) -> Iterator[bytes]:
        yield from self._close()
        self._items.append(item)
        place = len(self._items) - 1
        yield self._event("response.output_item.added", output_index=place, item=item.as_dict("in_progress"))
        if item.kind != "function_call":
            part = {"output_index": place, "item_id": item.identity, "content_index": 0, "part": item.content()}
            yield self._event("response.content_part.added", **part)

    def _append(self, kind: str, text: str) -> Iterator[bytes]:
        if kind != "function_call" and (not self._items or self._items[-1].kind != kind):
            yield from self._begin(_Item(kind, self._item_id(kind)))
        item = self._items[-1]
        item.parts.append(text)
        yield self._event(f"{_DELTAS[kind]}.delta", **self._place(item), delta=text, **_logprobs(kind))

    def _place(self, item: _Item) -> dict[str, Any]:
        place = {"output_index": len(self._items) - 1, "item_id": item.identity}
        return place if item.kind == "function_call" else {**place, "content_index": 0}

    def _close(self) -> Iterator[bytes]:
        """The events that complete the last item."""
        if not self._items:
            return
        item = self._items[-1]
        word = "arguments" if item.kind == "function_call" else "text"
        done: dict[str, Any] = {word: item.text, **_logprobs(item.kind)}
        if item.kind == "function_call":
            done["name"] = item.name
        yield self._event(f"{_DELTAS[item.kind]}.done", **self._place(item), **done)
        if item.kind != "function_call":
            yield self._event("response.content_part.done", **self._place(item), part=item.content())
        place = len(self._items) - 1
        yield self._event("response.output_item.done", output_index=place, item=item.as_dict("completed"))

    def _event(self, name: str, /, **content: Any) -> bytes:
        self._events += 1
        return sse.event(name, {"type": name, "sequence_number": self._events, **content})

    def _response(self, status: str, usage: Usage | None, metrics: dict[str, Any] | None) -> dict[str, Any]:
        request = self._request
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": f"resp_{self._identity}",
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": cut,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "model": self._model,
            "output": [item.as_dict("completed") for item in self._items],
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "store": False,
            "temperature": 1.0 if request.temperature is None else request.temperature,
            "text": request.text.model_dump(exclude_unset=True) if request.text else {"format": {"type": "text"}},
            "tool_choice": request.tool_choice or "auto",
            "tools": request.tools or [],
            "top_p": 1.0 if request.top_p is None else request.top_p,
            "truncation": "disabled",
            "usage": None if usage is None else self._usage(usage),
            "metrics": metrics,
        }

    def _usage(self, usage: Usage) -> dict[str, Any]:
        thought = any(item.kind == "reasoning" for item in self._items)
        reasoned = reasoning_tokens(self._tokens, self._tokenizer, thought=thought)
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": reasoned},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }


_DELTAS = {
    "reasoning": "response.reasoning_text",
    "message": "response.output_text",
    "function_call": "response.function_call_arguments",
}


def _logprobs(kind: str) -> dict[str, Any]:
    return {"logprobs": []} if kind == "message" else {}


def responses_call(request: ResponsesRequest, identity: str) -> GenerateCall:
    """ValueError names the field that is invalid."""
    for name in _STATEFUL:
        if getattr(request, name):
            raise ValueError(f"{name} is not supported: this server stores no responses, send the whole conversation")
    values = {
        "max_tokens": request.max_output_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed,
        "structured_outputs": structured(_format(request.text)),
        **speculated(request.speculation, request.drafter),
    }
    effort = (request.reasoning or {}).get("effort")
    if effort is not None and not isinstance(effort, str):
        raise ValueError("reasoning.effort must be a text")
    parallel = request.parallel_tool_calls is not False
    prompt = ChatPrompt(
        tuple(_messages(request)),
        tools_of([_tool(tool) for tool in request.tools or ()], _choice(request.tool_choice), parallel=parallel),
        template_arguments(request.chat_template_kwargs, effort),
    )
    return GenerateCall(prompt=prompt, params=params_of(values), request_id=identity, auto_reasoning=True)


def _format(text: TextOptions | None) -> ResponseFormat | None:
    given = None if text is None else text.format
    return None if given is None else ResponseFormat(type=given.type, json_schema=given)


def _tool(given: Mapping[str, Any]) -> dict[str, Any]:
    if given.get("type") != "function":
        raise ValueError(f"tools must be functions, got type {str(given.get('type'))[:100]!r}")
    return {"type": "function", "function": given}


def _choice(given: str | Mapping[str, Any] | None) -> str | dict[str, Any] | None:
    if not isinstance(given, Mapping):
        return given
    if given.get("type") != "function":
        raise ValueError(f"tool_choice.type must be function, got {str(given.get('type'))[:100]!r}")
    return {"function": {"name": given.get("name")}}


def _messages(request: ResponsesRequest) -> Iterator[Message]:
    if request.instructions:
        yield Message(role="system", content=request.instructions)
    if isinstance(request.input, str):
        yield Message(role="user", content=request.input)
        return
    waiting: tuple[str, dict[str, Any]] | None = None  # an assistant's turn, which consists of several items
    for number, item in enumerate(request.input):
        where, kind = f"input[{number}]", item.get("type", "message")
        if kind == "reasoning" or kind == "function_call" or (kind == "message" and item.get("role") == "assistant"):
            waiting = waiting or (where, {"role": "assistant", "content": "", "tool_calls": [], "reasoning": ""})
            _add(waiting[1], where, kind, item)
            continue
        if waiting is not None:
            yield message_of(*waiting)
            waiting = None
        yield message_of(where, _turn(where, kind, item))
    if waiting is not None:
        yield message_of(*waiting)


def _turn(where: str, kind: object, item: Mapping[str, Any]) -> dict[str, Any]:
    """A turn that one item makes."""
    if kind == "function_call_output":
        return {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}
    if kind != "message":
        raise ValueError(f"{where}: items of type {str(kind)[:100]!r} are not supported")
    if item.get("role") not in _ROLES:
        raise ValueError(f"{where}.role must be one of {', '.join(_ROLES)}, got {str(item.get('role'))[:100]!r}")
    return {"role": item["role"], "content": item.get("content")}


def _add(turn: dict[str, Any], where: str, kind: object, item: Mapping[str, Any]) -> None:
    if kind == "function_call":
        for name in ("call_id", "name", "arguments"):
            if not isinstance(item.get(name), str):
                raise ValueError(f"{where}.{name} must be a text, got {type(item.get(name)).__name__}")
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        turn["tool_calls"].append({"id": item.get("call_id"), "function": function})
    elif kind == "reasoning":
        parts = item.get("content")
        texts = (part.get("text") for part in parts if isinstance(part, Mapping)) if isinstance(parts, list) else ()
        turn["reasoning"] += "".join(text for text in texts if isinstance(text, str))
    else:
        turn["content"] = item.get("content")
