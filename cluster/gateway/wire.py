"""The public API's protobuf messages and our own types, each way side by side. Both ends of the wire use it."""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from outrider.cluster import generation as g
from outrider.cluster.errors import InvalidRequestError
from outrider.proto import inference_pb2 as pb
from outrider.workers.outputs import Logprob
from outrider.workers.text.assembler import Piece, Usage
from outrider.workers.types.request import FinishReason, OutputSoFar
from outrider.workers.types.sampling_params import MAX_DRAFT_TOKENS, SamplingParams
from outrider.workers.types.structured_outputs import StructuredOutputsParams
from outrider.workers.types.tools import Tool, ToolCall, ToolCallDelta, Tools

_PENALTIES = ("presence_penalty", "frequency_penalty", "repetition_penalty")
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", *_PENALTIES, "seed")
_STOPPING = ("max_tokens", "min_tokens", "ignore_eos", "include_stop_str_in_output")
_RESPONSE = ("logprobs", "skip_special_tokens", "prompt_logprobs", "reasoning")
_CALL = ("index", "id", "name", "arguments")
_LEAST_HEARTBEAT_MS = 100
_ACCEPTED = ("request_id", "seed", "prompt_tokens", "fingerprint")
_CHOICES = {
    "auto": pb.TOOL_CHOICE_MODE_AUTO,
    "none": pb.TOOL_CHOICE_MODE_NONE,
    "required": pb.TOOL_CHOICE_MODE_REQUIRED,
}
_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.CANCELLED: pb.FINISH_REASON_CANCELLED,
    FinishReason.ERROR: pb.FINISH_REASON_ERROR,
}
_REASONS_BACK = {code: reason for reason, code in _REASONS.items()}


def call_to_wire(call: g.GenerateCall) -> pb.GenerateRequest:
    """InvalidRequestError names a field whose value the message cannot hold."""
    request = pb.GenerateRequest()
    params = call.params
    _fill(request, call, ("request_id",))
    _prompt_to_wire(call.prompt, request)
    _fill(request.sampling, params, _SAMPLING)
    with _naming("logit_bias"):
        request.sampling.logit_bias.update(params.logit_bias or {})
    _fill(request.stopping, params, _STOPPING)
    for message, name, values in (
        (request.stopping, "stop", params.stop_strings),
        (request.stopping, "stop_token_ids", params.stop_token_ids),
        (request.sampling, "allowed_token_ids", params.allowed_token_ids),
        (request.sampling, "bad_words", params.bad_words),
    ):
        with _naming(name):
            getattr(message, name).extend(values or ())
    with _naming("bad_words_token_ids"):
        words = params.bad_words_token_ids or ()
        request.sampling.bad_words_token_ids.extend(pb.TokenIds(ids=word) for word in words)
    _fill(request.response, params, _RESPONSE)
    _fill(request.response, call, ("speculation_detail", "auto_reasoning"))
    if call.heartbeat_s:
        request.response.heartbeat_interval_ms = round(1000 * call.heartbeat_s)
    _speculation_to_wire(params.speculation, request.speculation)
    _fill(request.speculation, params, ("drafter",))
    if params.structured_outputs is not None:
        with _naming("structured_outputs"):
            _structured_to_wire(params.structured_outputs, request.structured_output)
    request.num_sequences = params.n
    if call.resume is not None:
        _resume_to_wire(call.resume, request.resume)
    return request


def _fill(message: Any, source: object, names: Iterable[str]) -> None:  # any message
    for name in names:
        if (value := getattr(source, name)) is not None:
            with _naming(name):
                setattr(message, name, value)


@contextlib.contextmanager
def _naming(field: str) -> Iterator[None]:
    """What protobuf will not take (out of range, another type, no Unicode), as an error that names the field."""
    try:
        yield
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidRequestError(f"{field} cannot be sent: {error}") from error


def call_from_wire(request: pb.GenerateRequest) -> g.GenerateCall:
    """ValueError names the field that is wrong."""
    prompt = _prompt_from_wire(request)
    given: dict[str, Any] = {"max_tokens": None}
    given |= _present(request.sampling, _SAMPLING) | _present(request.stopping, _STOPPING)
    given |= _present(request.response, _RESPONSE)
    if request.sampling.logit_bias:
        given["logit_bias"] = dict(request.sampling.logit_bias)
    given |= {name: tuple(getattr(request.stopping, name)) or None for name in ("stop", "stop_token_ids")}
    given |= {name: list(getattr(request.sampling, name)) or None for name in ("allowed_token_ids", "bad_words")}
    given["bad_words_token_ids"] = [list(word.ids) for word in request.sampling.bad_words_token_ids] or None
    if request.HasField("structured_output"):
        given["structured_outputs"] = _structured_from_wire(request.structured_output)
    given["speculation"] = _speculation_from_wire(request.speculation)
    given |= _present(request.speculation, ("drafter",))
    if request.HasField("num_sequences"):
        given["n"] = request.num_sequences
    return g.GenerateCall(
        prompt=prompt,
        params=_checked_params(given),
        request_id=request.request_id,
        speculation_detail=request.response.speculation_detail,
        auto_reasoning=request.response.auto_reasoning,
        resume=_resume_from_wire(request.resume) if request.HasField("resume") else None,
        heartbeat_s=_heartbeat_s(request.response),
    )


def _heartbeat_s(options: pb.ResponseOptions) -> float:
    if not options.HasField("heartbeat_interval_ms"):
        return 0.0
    if options.heartbeat_interval_ms < _LEAST_HEARTBEAT_MS:
        raise ValueError(f"heartbeat_interval_ms must be at least {_LEAST_HEARTBEAT_MS}")
    return options.heartbeat_interval_ms / 1000


def _checked_params(given: Mapping[str, Any]) -> SamplingParams:
    try:
        return SamplingParams(**given)
    except ValueError as error:
        message = str(error)
        raise ValueError(f"num_sequences{message[1:]}" if message.startswith("n ") else message) from error


def _present(message: Any, names: Iterable[str]) -> dict[str, Any]:  # any message with optional fields
    return {name: getattr(message, name) for name in names if message.HasField(name)}


def _named(source: object, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(source, name) for name in names}


def _prompt_to_wire(prompt: g.Prompt, request: pb.GenerateRequest) -> None:
    match prompt:
        case g.TextPrompt(text):
            with _naming("prompt"):
                request.prompt = text
        case g.TokenPrompt(token_ids):
            request.token_ids.SetInParent()
            with _naming("token_ids"):
                request.token_ids.ids.extend(token_ids)
        case g.ChatPrompt():
            request.messages.SetInParent()
            _chat_to_wire(prompt, request.messages)


def _prompt_from_wire(request: pb.GenerateRequest) -> g.Prompt:
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
    with _naming("messages"):
        wire.messages.extend(map(_message_to_wire, chat.messages))
    with _naming("tools"):
        wire.tools.extend(map(_tool_to_wire, chat.tools.tools))
        wire.tool_choice.mode = _CHOICES["required" if chat.tools.function else chat.tools.choice]
        wire.tool_choice.function = chat.tools.function
        wire.parallel_tool_calls = chat.tools.parallel
    if chat.arguments:
        with _naming("template_arguments"):
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


def _resume_to_wire(resume: g.Resume, message: pb.Resume) -> None:
    with _naming("resume"):
        message.seed, message.fingerprint = resume.seed, resume.fingerprint
        message.outputs.extend(pb.ResumedOutput(index=o.index, token_ids=o.token_ids) for o in resume.outputs)


def _resume_from_wire(message: pb.Resume) -> g.Resume:
    outputs = tuple(OutputSoFar(index=o.index, token_ids=tuple(o.token_ids)) for o in message.outputs)
    return g.Resume(seed=message.seed, fingerprint=message.fingerprint, outputs=outputs)


def _speculation_to_wire(speculation: str | int | None, options: pb.SpeculationOptions) -> None:
    if isinstance(speculation, int):
        options.mode, options.max_draft_tokens = pb.SPECULATION_MODE_FIXED, speculation
    elif speculation is not None:
        options.mode = pb.SPECULATION_MODE_AUTO if speculation == "auto" else pb.SPECULATION_MODE_OFF


def _speculation_from_wire(options: pb.SpeculationOptions) -> str | int | None:
    if options.mode != pb.SPECULATION_MODE_FIXED and options.HasField("max_draft_tokens"):
        raise ValueError("max_draft_tokens goes with speculation mode FIXED only")
    if options.mode == pb.SPECULATION_MODE_FIXED:
        if not 1 <= options.max_draft_tokens <= MAX_DRAFT_TOKENS:
            given = options.max_draft_tokens if options.HasField("max_draft_tokens") else "none"
            raise ValueError(f"max_draft_tokens must be 1..{MAX_DRAFT_TOKENS} with speculation mode FIXED, got {given}")
        return options.max_draft_tokens
    modes = {
        pb.SPECULATION_MODE_UNSPECIFIED: None,
        pb.SPECULATION_MODE_AUTO: "auto",
        pb.SPECULATION_MODE_OFF: "off",
    }
    if options.mode not in modes:
        raise ValueError(f"speculation mode must be AUTO, OFF or FIXED, got {options.mode}")
    return modes[options.mode]


def _structured_to_wire(params: StructuredOutputsParams, message: pb.StructuredOutput) -> None:
    if params.json is not None:
        message.json_schema = params.source
    elif params.choice is not None:
        message.choice.choices.extend(params.choice)
    elif params.json_object:
        message.json_object = True
    _fill(message, params, ("regex", "grammar", "disable_any_whitespace", "whitespace_pattern"))


def _structured_from_wire(message: pb.StructuredOutput) -> StructuredOutputsParams:
    which = message.WhichOneof("constraint")
    value = list(message.choice.choices) if which == "choice" else getattr(message, which) if which else None
    constraint: dict[str, Any] = {} if which is None else {"json" if which == "json_schema" else which: value}
    pattern = message.whitespace_pattern if message.HasField("whitespace_pattern") else None
    return StructuredOutputsParams(
        **constraint, disable_any_whitespace=message.disable_any_whitespace, whitespace_pattern=pattern
    )


def event_to_wire(event: g.Event) -> pb.GenerateResponse:
    match event:
        case g.Accepted():
            return pb.GenerateResponse(accepted=pb.Accepted(**_named(event, _ACCEPTED)))
        case g.Output():
            return pb.GenerateResponse(output=_output_to_wire(event))
        case g.Finished():
            return pb.GenerateResponse(finished=_finished_to_wire(event))
        case g.Failed():
            return pb.GenerateResponse(error=pb.Error(message=event.message, resumable=event.resumable))


def heartbeat_to_wire() -> pb.GenerateResponse:
    return pb.GenerateResponse(heartbeat=pb.Heartbeat())


def event_from_wire(response: pb.GenerateResponse) -> g.Event | None:
    """None for a heartbeat, and an event of a kind that only a newer gateway knows."""
    match response.WhichOneof("event"):
        case "accepted":
            return g.Accepted(**_named(response.accepted, _ACCEPTED))
        case "output":
            return _output_from_wire(response.output)
        case "finished":
            return _finished_from_wire(response.finished)
        case "error":
            return g.Failed(message=response.error.message, resumable=response.error.resumable)
        case _:
            return None


def _output_to_wire(output: g.Output) -> pb.Output:
    return pb.Output(
        index=output.index,
        token_ids=output.token_ids,
        text=output.text,
        reasoning=output.reasoning,
        tool_calls=[pb.ToolCallDelta(**_named(delta, _CALL)) for delta in output.tool_calls],
        drafted=output.drafted,
        accepted=output.accepted,
        pieces=[pb.TextPiece(**piece._asdict()) for piece in output.pieces],
        logprobs=map(_logprobs_to_wire, output.logprobs),
        prompt_logprobs=map(_logprobs_to_wire, output.prompt_logprobs),
    )


def _logprobs_to_wire(entry: Mapping[int, Logprob]) -> pb.TokenLogprobs:
    return pb.TokenLogprobs(
        entries=[
            pb.Logprob(token_id=n, logprob=one.logprob, rank=one.rank, decoded_token=one.decoded_token)
            for n, one in entry.items()
        ]
    )


def _output_from_wire(output: pb.Output) -> g.Output:
    return g.Output(
        index=output.index,
        token_ids=tuple(output.token_ids),
        text=output.text,
        reasoning=output.reasoning,
        tool_calls=tuple(ToolCallDelta(**_named(delta, _CALL)) for delta in output.tool_calls),
        drafted=output.drafted,
        accepted=output.accepted,
        pieces=tuple(Piece(one.text, one.reasoning, one.drafted) for one in output.pieces),
        logprobs=tuple(map(_logprobs_from_wire, output.logprobs)),
        prompt_logprobs=tuple(map(_logprobs_from_wire, output.prompt_logprobs)),
    )


def _logprobs_from_wire(entry: pb.TokenLogprobs) -> dict[int, Logprob]:
    return {e.token_id: Logprob(logprob=e.logprob, rank=e.rank, decoded_token=e.decoded_token) for e in entry.entries}


def _finished_to_wire(finished: g.Finished) -> pb.Finished:
    stop = finished.stop_reason
    return pb.Finished(
        index=finished.index,
        reason=_REASONS[finished.reason],
        stop_token_id=stop if isinstance(stop, int) else None,
        stop_string=stop if isinstance(stop, str) else None,
        usage=None if finished.usage is None else _usage_to_wire(finished.usage),
    )


def _finished_from_wire(finished: pb.Finished) -> g.Finished:
    which = finished.WhichOneof("stop_reason")
    return g.Finished(
        index=finished.index,
        reason=_REASONS_BACK[finished.reason],
        stop_reason=None if which is None else getattr(finished, which),
        usage=_usage_from_wire(finished.usage) if finished.HasField("usage") else None,
    )


_USAGE_COUNTS = (
    *("prompt_tokens", "cached_tokens", "completion_tokens"),
    *("rounds", "drafted", "accepted", "estimated_time_saved_s"),
)
_USAGE_LISTS = ("accepted_per_position", "drafted_per_position", "rounds_per_depth")


def _usage_to_wire(usage: Usage) -> pb.Usage:
    return pb.Usage(**_named(usage, (*_USAGE_COUNTS, *_USAGE_LISTS)))


def _usage_from_wire(usage: pb.Usage) -> Usage:
    lists: dict[str, Any] = {name: list(getattr(usage, name)) for name in _USAGE_LISTS}
    return Usage(**_named(usage, _USAGE_COUNTS), **lists)
