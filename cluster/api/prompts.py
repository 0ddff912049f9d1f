"""Converts prompts, with their messages and tools, to and from protobuf."""

import json
from typing import Any

from outrider.cluster.api import generation as g
from outrider.cluster.api.fields import naming
from outrider.proto import inference_pb2 as pb
from outrider.workers.types.requests.tools import Tool, ToolCall, Tools

_CHOICES = {
    "auto": pb.TOOL_CHOICE_MODE_AUTO,
    "none": pb.TOOL_CHOICE_MODE_NONE,
    "required": pb.TOOL_CHOICE_MODE_REQUIRED,
}


def prompt_to_wire(prompt: g.Prompt, request: pb.GenerateRequest) -> None:
    match prompt:
        case g.TextPrompt(text):
            with naming("prompt"):
                request.prompt = text
        case g.TokenPrompt(token_ids):
            request.token_ids.SetInParent()
            with naming("token_ids"):
                request.token_ids.ids.extend(token_ids)
        case g.ChatPrompt():
            request.messages.SetInParent()
            _chat_to_wire(prompt, request.messages)


def prompt_from_wire(request: pb.GenerateRequest) -> g.Prompt:
    match request.WhichOneof("input"):
        case "prompt":
            return g.TextPrompt(request.prompt)
        case "token_ids":
            return g.TokenPrompt(tuple(request.token_ids.ids))
        case "messages":
            return _chat_from_wire(request.messages)
        case _:
            raise ValueError("prompt, token_ids or messages must be given: the request has no input")


def _chat_to_wire(chat: g.ChatPrompt, wire: pb.Messages) -> None:
    with naming("messages"):
        wire.messages.extend(map(_message_to_wire, chat.messages))
    with naming("tools"):
        wire.tools.extend(map(_tool_to_wire, chat.tools.tools))
        wire.tool_choice.mode = _CHOICES["required" if chat.tools.function else chat.tools.choice]
        wire.tool_choice.function = chat.tools.function
        wire.parallel_tool_calls = chat.tools.parallel
    if chat.arguments:
        with naming("template_arguments"):
            wire.template_arguments = json.dumps(dict(chat.arguments))


def _chat_from_wire(wire: pb.Messages) -> g.ChatPrompt:
    modes = {mode: choice for choice, mode in _CHOICES.items()}
    tools = Tools(
        tools=tuple(map(_tool_from_wire, wire.tools)),
        choice=modes.get(wire.tool_choice.mode, "auto"),
        function=wire.tool_choice.function,
        parallel=wire.parallel_tool_calls if wire.HasField("parallel_tool_calls") else True,
    )
    arguments = _object("template_arguments", wire.template_arguments) if wire.template_arguments else {}
    return g.ChatPrompt(tuple(map(_message_from_wire, wire.messages)), tools, arguments)


def _message_to_wire(message: g.Message) -> pb.Message:
    content, parts = (message.content, ()) if isinstance(message.content, str) else ("", message.content)
    return pb.Message(
        role=message.role,
        content=content,
        parts=[pb.ContentPart(text=text) for text in parts],
        tool_calls=[pb.ToolCall(id=call.id, name=call.name, arguments=call.arguments) for call in message.tool_calls],
        tool_call_id=message.tool_call_id,
        name=message.name,
        reasoning=message.reasoning,
    )


def _message_from_wire(message: pb.Message) -> g.Message:
    if message.parts and message.content:
        raise ValueError("messages: a message has content or parts, not both")
    if any(part.WhichOneof("part") is None for part in message.parts):
        raise ValueError("messages: every part must be text")
    return g.Message(
        role=message.role,
        content=tuple(part.text for part in message.parts) if message.parts else message.content,
        tool_calls=tuple(ToolCall(id=one.id, name=one.name, arguments=one.arguments) for one in message.tool_calls),
        tool_call_id=message.tool_call_id,
        name=message.name,
        reasoning=message.reasoning,
    )


def _tool_to_wire(tool: Tool) -> pb.Tool:
    parameters = None if tool.parameters is None else json.dumps(dict(tool.parameters))
    return pb.Tool(name=tool.name, description=tool.description, parameters=parameters)


def _tool_from_wire(tool: pb.Tool) -> Tool:
    parameters = _object(f"tools: parameters of {tool.name}", tool.parameters) if tool.HasField("parameters") else None
    return Tool(name=tool.name, description=tool.description, parameters=parameters)


def _object(name: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} must be JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a JSON object, got {text[:100]}")
    return value
