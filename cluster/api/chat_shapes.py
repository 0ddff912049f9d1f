"""Converts messages and tools from OpenAI's format (Python objects) to our own types, for clients and HTTP."""

from collections.abc import Mapping, Sequence
from typing import Any

from outrider.cluster.api.errors import InvalidRequestError
from outrider.cluster.api.generation import Message
from outrider.workers.types.requests.tools import Tool, ToolCall, Tools

Messages = Sequence[Mapping[str, Any]]  # {"role": ..., "content": a text or parts, "tool_calls": ..., ...}
ToolsGiven = Sequence[Mapping[str, Any] | Tool]  # {"type": "function", "function": {"name": ..., ...}}
ToolChoice = str | Mapping[str, Any]  # auto, none, required, or {"type": "function", "function": {"name": ...}}


def messages_of(given: Messages) -> tuple[Message, ...]:
    """Raises InvalidRequestError, which names the invalid part."""
    return tuple(message_of(f"messages[{number}]", one) for number, one in enumerate(given))


def message_of(where: str, given: Mapping[str, Any]) -> Message:
    """`where`: the message's place in the request, with which an InvalidRequestError begins."""
    listed = given.get("tool_calls") or ()
    if not isinstance(listed, list | tuple):
        raise InvalidRequestError(f"{where}.tool_calls must be a list, got {type(listed).__name__}")
    calls = tuple(_call(where, one) for one in listed)
    if "role" not in given or ("content" not in given and not calls):
        absent = "content" if "role" in given else "role"
        raise InvalidRequestError(f"{where} has no {absent!r}: each message needs a role and content")
    role = _text(f"{where}.role", given["role"])
    return Message(
        role="system" if role == "developer" else role,
        content=_content(f"{where}.content", given.get("content")),
        tool_calls=calls,
        tool_call_id=_text(f"{where}.tool_call_id", given.get("tool_call_id") or ""),
        name=_text(f"{where}.name", given.get("name") or ""),
        reasoning=_text(f"{where}.reasoning", given.get("reasoning_content") or given.get("reasoning") or ""),
    )


def _content(where: str, given: object) -> str | tuple[str, ...]:
    if given is None:
        return ""
    if isinstance(given, str):
        return given
    if not isinstance(given, Sequence):
        raise InvalidRequestError(f"{where} must be a text or a list of parts, got {type(given).__name__}")
    return tuple(_part(where, part) for part in given)


def _part(where: str, part: object) -> str:
    """The text of a text part. Raises InvalidRequestError for other types of parts."""
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping):
        text = part.get("refusal") if part.get("type") == "refusal" else part.get("text")
        if isinstance(text, str):
            return text
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise InvalidRequestError(f"{where} must be text: this model does not support parts of type {str(kind)[:100]!r}")


def _call(where: str, given: object) -> ToolCall:
    function = given.get("function") if isinstance(given, Mapping) else None
    if not isinstance(given, Mapping) or not isinstance(function, Mapping):
        raise InvalidRequestError(f"{where}.tool_calls must each have a function")
    return ToolCall(
        id=_text(f"{where}.tool_calls.id", given.get("id") or ""),
        name=_text(f"{where}.tool_calls.function.name", function.get("name")),
        arguments=_text(f"{where}.tool_calls.function.arguments", function.get("arguments") or "{}"),
    )


def _text(where: str, given: object) -> str:
    if not isinstance(given, str):
        raise InvalidRequestError(f"{where} must be a text, got {type(given).__name__}")
    return given


def tools_of(given: ToolsGiven | None, choice: ToolChoice | None = None, *, parallel: bool = True) -> Tools:
    """Raises InvalidRequestError, which names the invalid part."""
    function = ""
    if isinstance(choice, Mapping):
        named = choice.get("function")
        function = _text("tool_choice.function.name", named.get("name") if isinstance(named, Mapping) else None)
        choice = "required"
    try:
        tools = tuple(_tool(number, one) for number, one in enumerate(given or ()))
        return Tools(tools=tools, choice=choice or "auto", function=function, parallel=parallel)
    except ValueError as error:
        raise InvalidRequestError(str(error)) from error


def _tool(number: int, given: Mapping[str, Any] | Tool) -> Tool:
    if isinstance(given, Tool):
        return given
    function = given.get("function") if isinstance(given, Mapping) else None
    if not isinstance(function, Mapping):
        raise InvalidRequestError(f"tools[{number}] must be a function: other tools are not supported")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise InvalidRequestError(f"tools[{number}].function.parameters must be a JSON schema")
    return Tool(
        name=_text(f"tools[{number}].function.name", function.get("name")),
        description=_text(f"tools[{number}].function.description", function.get("description") or ""),
        parameters=parameters,
    )
