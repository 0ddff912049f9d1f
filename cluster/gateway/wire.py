"""The public API's protobuf messages and our own types, each way side by side. Both ends of the wire use it."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from outrider.cluster import generation as g
from outrider.cluster.errors import InvalidRequestError
from outrider.proto import inference_pb2 as pb
from outrider.workers.engine.request import FinishReason
from outrider.workers.outputs import Logprob
from outrider.workers.sampling_params import MAX_DRAFT_TOKENS, SamplingParams
from outrider.workers.text.assembler import Usage

_PENALTIES = ("presence_penalty", "frequency_penalty", "repetition_penalty")
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", *_PENALTIES, "seed")
_STOPPING = ("max_tokens", "min_tokens", "ignore_eos", "include_stop_str_in_output")
_ACCEPTED = ("request_id", "seed", "prompt_tokens", "fingerprint")
_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.CANCELLED: pb.FINISH_REASON_CANCELLED,
}
_REASONS_BACK = {code: reason for reason, code in _REASONS.items()}


def call_to_wire(call: g.GenerateCall) -> pb.GenerateRequest:
    """InvalidRequestError names a field whose value the message cannot hold."""
    request = pb.GenerateRequest()
    params = call.params
    _fill(request, call, ("request_id",))
    _prompt_to_wire(call.prompt, request)
    _fill(request.sampling, params, _SAMPLING)
    request.sampling.logit_bias.update(params.logit_bias or {})
    _fill(request.stopping, params, _STOPPING)
    for name, values in (("stop", params.stop_strings), ("stop_token_ids", params.stop_token_ids or ())):
        with _naming(name):
            getattr(request.stopping, name).extend(values)
    _fill(request.response, params, ("logprobs", "skip_special_tokens"))
    _fill(request.response, call, ("speculation_detail",))
    _speculation_to_wire(params.speculation, request.speculation)
    _fill(request.speculation, params, ("drafter",))
    request.num_sequences = params.n
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
    _refuse_what_is_not_built(request)
    prompt = _prompt_from_wire(request)
    given: dict[str, Any] = {"max_tokens": None}
    given |= _present(request.sampling, _SAMPLING) | _present(request.stopping, _STOPPING)
    given |= _present(request.response, ("logprobs", "skip_special_tokens"))
    if request.sampling.logit_bias:
        given["logit_bias"] = dict(request.sampling.logit_bias)
    given["stop"] = tuple(request.stopping.stop) or None
    given["stop_token_ids"] = tuple(request.stopping.stop_token_ids) or None
    given["speculation"] = _speculation_from_wire(request.speculation)
    given |= _present(request.speculation, ("drafter",))
    if request.HasField("num_sequences"):
        given["n"] = request.num_sequences
    return g.GenerateCall(
        prompt=prompt,
        params=_checked_params(given),
        request_id=request.request_id,
        speculation_detail=request.response.speculation_detail,
    )


def _refuse_what_is_not_built(request: pb.GenerateRequest) -> None:
    for message, name in ((request, "structured_output"), (request, "resume")):
        if message.HasField(name):
            raise ValueError(f"{name} is not supported yet: leave it out")


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
        case g.ChatPrompt(messages):
            request.messages.SetInParent()
            with _naming("messages"):
                request.messages.messages.extend(pb.Message(role=m.role, content=m.content) for m in messages)


def _prompt_from_wire(request: pb.GenerateRequest) -> g.Prompt:
    match request.WhichOneof("input"):
        case "prompt":
            return g.TextPrompt(request.prompt)
        case "token_ids":
            return g.TokenPrompt(tuple(request.token_ids.ids))
        case "messages":
            return g.ChatPrompt(tuple(g.Message(role=m.role, content=m.content) for m in request.messages.messages))
        case _:
            raise ValueError("prompt, token_ids or messages must be given: the request has no input")


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


def event_to_wire(event: g.Event) -> pb.GenerateResponse:
    match event:
        case g.Accepted():
            return pb.GenerateResponse(accepted=pb.Accepted(**_named(event, _ACCEPTED)))
        case g.Output():
            return pb.GenerateResponse(output=_output_to_wire(event))
        case g.Finished():
            return pb.GenerateResponse(finished=_finished_to_wire(event))
        case g.Failed():
            return pb.GenerateResponse(error=pb.Error(message=event.message))


def event_from_wire(response: pb.GenerateResponse) -> g.Event | None:
    """None for an event of a kind that only a newer gateway knows."""
    match response.WhichOneof("event"):
        case "accepted":
            return g.Accepted(**_named(response.accepted, _ACCEPTED))
        case "output":
            return _output_from_wire(response.output)
        case "finished":
            return _finished_from_wire(response.finished)
        case "error":
            return g.Failed(message=response.error.message)
        case _:
            return None


def _output_to_wire(output: g.Output) -> pb.Output:
    return pb.Output(
        index=output.index,
        token_ids=output.token_ids,
        text=output.text,
        drafted=output.drafted,
        accepted=output.accepted,
        logprobs=[
            pb.TokenLogprobs(
                entries=[
                    pb.Logprob(token_id=n, logprob=one.logprob, rank=one.rank, decoded_token=one.decoded_token)
                    for n, one in entry.items()
                ]
            )
            for entry in output.logprobs
        ],
    )


def _output_from_wire(output: pb.Output) -> g.Output:
    return g.Output(
        index=output.index,
        token_ids=tuple(output.token_ids),
        text=output.text,
        drafted=output.drafted,
        accepted=output.accepted,
        logprobs=tuple(
            {e.token_id: Logprob(logprob=e.logprob, rank=e.rank, decoded_token=e.decoded_token) for e in entry.entries}
            for entry in output.logprobs
        ),
    )


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


_USAGE_COUNTS = ("prompt_tokens", "cached_tokens", "completion_tokens", "rounds", "drafted", "accepted")
_USAGE_LISTS = ("accepted_per_position", "drafted_per_position")


def _usage_to_wire(usage: Usage) -> pb.Usage:
    return pb.Usage(**_named(usage, (*_USAGE_COUNTS, *_USAGE_LISTS)))


def _usage_from_wire(usage: pb.Usage) -> Usage:
    lists: dict[str, Any] = {name: list(getattr(usage, name)) for name in _USAGE_LISTS}
    return Usage(**_named(usage, _USAGE_COUNTS), **lists)
