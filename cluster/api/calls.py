"""Converts between GenerateCall and the GenerateRequest message, for clients and gateways."""

from collections.abc import Mapping
from typing import Any

from outrider.cluster.api import generation as g
from outrider.cluster.api.fields import fill, naming, present
from outrider.cluster.api.prompts import prompt_from_wire, prompt_to_wire
from outrider.proto import inference_pb2 as pb
from outrider.workers.types.requests.request import OutputSoFar
from outrider.workers.types.requests.sampling_params import MAX_DRAFT_TOKENS, SamplingParams
from outrider.workers.types.requests.structured_outputs import StructuredOutputsParams

_PENALTIES = ("presence_penalty", "frequency_penalty", "repetition_penalty")
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", *_PENALTIES, "seed")
_STOPPING = ("max_tokens", "min_tokens", "ignore_eos", "include_stop_str_in_output")
_RESPONSE = ("logprobs", "skip_special_tokens", "prompt_logprobs", "reasoning")
_MIN_HEARTBEAT_MS = 100


def call_to_wire(call: g.GenerateCall) -> pb.GenerateRequest:
    """Raises InvalidRequestError, which names the field, if the message cannot hold a value."""
    request = pb.GenerateRequest()
    params = call.params
    fill(request, call, ("request_id",))
    prompt_to_wire(call.prompt, request)
    fill(request.sampling, params, _SAMPLING)
    with naming("logit_bias"):
        request.sampling.logit_bias.update(params.logit_bias or {})
    fill(request.stopping, params, _STOPPING)
    for message, name, values in (
        (request.stopping, "stop", params.stop_strings),
        (request.stopping, "stop_token_ids", params.stop_token_ids),
        (request.sampling, "allowed_token_ids", params.allowed_token_ids),
        (request.sampling, "bad_words", params.bad_words),
    ):
        with naming(name):
            getattr(message, name).extend(values or ())
    with naming("bad_words_token_ids"):
        words = params.bad_words_token_ids or ()
        request.sampling.bad_words_token_ids.extend(pb.TokenIds(ids=word) for word in words)
    fill(request.response, params, _RESPONSE)
    fill(request.response, call, ("speculation_detail", "auto_reasoning"))
    if call.heartbeat_s:
        request.response.heartbeat_interval_ms = round(1000 * call.heartbeat_s)
    _speculation_to_wire(params.speculation, request.speculation)
    fill(request.speculation, params, ("drafter",))
    if params.structured_outputs is not None:
        with naming("structured_outputs"):
            _structured_to_wire(params.structured_outputs, request.structured_output)
    request.num_sequences = params.n
    if call.resume is not None:
        _resume_to_wire(call.resume, request.resume)
    return request


def call_from_wire(request: pb.GenerateRequest) -> g.GenerateCall:
    """Raises ValueError, which names the field, if a field is invalid."""
    prompt = prompt_from_wire(request)
    given: dict[str, Any] = {"max_tokens": None}
    given |= present(request.sampling, _SAMPLING) | present(request.stopping, _STOPPING)
    given |= present(request.response, _RESPONSE)
    if request.sampling.logit_bias:
        given["logit_bias"] = dict(request.sampling.logit_bias)
    given |= {name: tuple(getattr(request.stopping, name)) or None for name in ("stop", "stop_token_ids")}
    given |= {name: list(getattr(request.sampling, name)) or None for name in ("allowed_token_ids", "bad_words")}
    given["bad_words_token_ids"] = [list(word.ids) for word in request.sampling.bad_words_token_ids] or None
    if request.HasField("structured_output"):
        given["structured_outputs"] = _structured_from_wire(request.structured_output)
    given["speculation"] = _speculation_from_wire(request.speculation)
    given |= present(request.speculation, ("drafter",))
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
    if options.heartbeat_interval_ms < _MIN_HEARTBEAT_MS:
        raise ValueError(f"heartbeat_interval_ms must be at least {_MIN_HEARTBEAT_MS}")
    return options.heartbeat_interval_ms / 1000


def _checked_params(given: Mapping[str, Any]) -> SamplingParams:
    try:
        return SamplingParams(**given)
    except ValueError as error:
        message = str(error)
        raise ValueError(f"num_sequences{message[1:]}" if message.startswith("n ") else message) from error


def _resume_to_wire(resume: g.Resume, message: pb.Resume) -> None:
    with naming("resume"):
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
        raise ValueError("max_draft_tokens is only valid with speculation mode FIXED")
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
    fill(message, params, ("regex", "grammar", "disable_any_whitespace", "whitespace_pattern"))


def _structured_from_wire(message: pb.StructuredOutput) -> StructuredOutputsParams:
    which = message.WhichOneof("constraint")
    value = list(message.choice.choices) if which == "choice" else getattr(message, which) if which else None
    constraint: dict[str, Any] = {} if which is None else {"json" if which == "json_schema" else which: value}
    pattern = message.whitespace_pattern if message.HasField("whitespace_pattern") else None
    return StructuredOutputsParams(
        **constraint, disable_any_whitespace=message.disable_any_whitespace, whitespace_pattern=pattern
    )
