"""Builds calls from arguments, and converts gRPC statuses to exceptions, for Client and AsyncClient."""

import dataclasses
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import grpc

from outrider.cluster.api.chat_shapes import Messages, ToolChoice, ToolsGiven, messages_of, tools_of
from outrider.cluster.api.errors import (
    DeadlineExceededError,
    DuplicateRequestError,
    InvalidRequestError,
    NotAllowedError,
    UnavailableError,
)
from outrider.cluster.api.generation import (
    ChatPrompt,
    GenerateCall,
    Prompt,
    TextPrompt,
    TokenPrompt,
)
from outrider.cluster.client.grpc_status import NOT_REACHED, is_too_large, retry_delay_s
from outrider.workers.types.errors import OutriderError, OverloadedError
from outrider.workers.types.requests.sampling_params import SamplingParams
from outrider.workers.types.requests.tools import Tools
from outrider.workers.types.requests.trace_context import TraceContext

_PARAMETERS = tuple(field.name for field in dataclasses.fields(SamplingParams))
_KINDS: dict[grpc.StatusCode, type[OutriderError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.NOT_FOUND: InvalidRequestError,
    grpc.StatusCode.ALREADY_EXISTS: DuplicateRequestError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.UNAUTHENTICATED: NotAllowedError,
    grpc.StatusCode.PERMISSION_DENIED: NotAllowedError,
}


def make_call(
    prompt: str | None = None,
    *,
    token_ids: Sequence[int] | None = None,
    messages: Messages | None = None,
    tools: ToolsGiven | None = None,
    tool_choice: ToolChoice = "auto",
    parallel_tool_calls: bool = True,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    auto_reasoning: bool = False,
    params: SamplingParams | None = None,
    request_id: str = "",
    traceparent: str = "",
    tracestate: str = "",
    timeout_s: float | None = None,
    speculation_detail: bool = False,
    **sampling: Any,  # fields of SamplingParams
) -> tuple[GenerateCall, float | None]:
    """The call and `timeout_s`. Without `params`, max_tokens defaults to the model's length, as in the gRPC API.

    Raises InvalidRequestError, which names the invalid argument.
    """
    if params is not None and sampling:
        raise InvalidRequestError(f"give params or {', '.join(sampling)}, not both")
    chosen = tools_of(tools, tool_choice, parallel=parallel_tool_calls)
    call = GenerateCall(
        prompt=_prompt(prompt, token_ids, messages, chosen, chat_template_kwargs or {}),
        params=params if params is not None else _params(sampling),
        request_id=request_id,
        speculation_detail=speculation_detail,
        auto_reasoning=auto_reasoning,
        trace=_trace(traceparent, tracestate),
    )
    return call, timeout_s


def _trace(parent: str, state: str) -> TraceContext | None:
    trace = TraceContext.parse(parent, state)
    if parent and trace is None:
        raise InvalidRequestError(
            f"traceparent must be in W3C Trace Context format, 00-TRACE-SPAN-FLAGS, got {parent!r}"
        )
    return trace


def _params(sampling: Mapping[str, Any]) -> SamplingParams:
    unknown = [name for name in sampling if name not in _PARAMETERS]
    if unknown:
        raise InvalidRequestError(f"unknown parameter {unknown[0]!r}: known parameters are {', '.join(_PARAMETERS)}")
    try:
        return SamplingParams(**{"max_tokens": None, **sampling})
    except ValueError as error:
        raise InvalidRequestError(str(error)) from error
    except TypeError as error:
        raise InvalidRequestError(f"one of {', '.join(sampling)} has the wrong type: {error}") from error


def _prompt(
    prompt: str | None,
    token_ids: Sequence[int] | None,
    messages: Messages | None,
    tools: Tools,
    template_arguments: Mapping[str, Any],
) -> Prompt:
    if sum(given is not None for given in (prompt, token_ids, messages)) != 1:
        raise InvalidRequestError("give exactly one of prompt, token_ids and messages")
    if messages is None and (tools or template_arguments):
        raise InvalidRequestError("tools and chat_template_kwargs require messages")
    if prompt is not None:
        return TextPrompt(prompt)
    if token_ids is not None:
        for token_id in token_ids:
            if not isinstance(token_id, Integral) or not 0 <= token_id < 2**32:
                raise InvalidRequestError(f"token_ids must be integers in [0, {2**32 - 1}], got {token_id!r}")
        return TokenPrompt(tuple(token_ids))
    return ChatPrompt(messages_of(messages or ()), tools, template_arguments)


def explained(error: grpc.RpcError | OutriderError, address: str) -> OutriderError:
    """The exception for the caller."""
    return error if isinstance(error, OutriderError) else exception_of(error, address)


def exception_of(error: grpc.RpcError, address: str) -> OutriderError:
    """The exception for a gRPC status."""
    code, details = error.code(), error.details() or ""
    if is_too_large(error):
        return InvalidRequestError(f"the request is larger than the gateway accepts: {details}")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return OverloadedError(details, retry_delay_s(error) or 1.0)
    if code is grpc.StatusCode.UNAVAILABLE:
        return UnavailableError(_unavailable(address, details))
    kind = _KINDS.get(code, OutriderError)
    return kind(details if kind is not OutriderError else f"{address}: {code.name}: {details}")


def _unavailable(address: str, details: str) -> str:
    """The gateway's message, or a short message if it cannot be reached, in place of gRPC's long one."""
    found = NOT_REACHED.match(details)
    if found is None:
        return f"{address}: {details}"
    return f"cannot reach {address} ({found[1]}): is a gateway running there? `outrider serve` starts one"
