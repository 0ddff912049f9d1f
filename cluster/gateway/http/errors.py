"""Errors as HTTP responses: a status, and a body in OpenAI's or Anthropic's format."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from outrider.cluster.api.errors import (
    DuplicateRequestError,
    GenerationFailedError,
    NotAllowedError,
    UnavailableError,
)
from outrider.workers.types.errors import EngineStoppedError, OverloadedError


class HttpError(Exception):
    """An error with its HTTP status, raised by HTTP endpoints only."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


class GatewayShutdownError(GenerationFailedError):
    """The gateway shut down during the request. Another gateway can resume it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """An error response."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def openai(self) -> dict[str, Any]:
        kind = _OPENAI.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def anthropic(self) -> dict[str, Any]:
        kind = _ANTHROPIC.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": self.message}}


_OPENAI = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}
_ANTHROPIC = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def problem_of(error: Exception) -> Problem | None:
    """None for an internal error, which is logged and not shown to the client."""
    match error:
        case HttpError():
            return Problem(status=error.status, message=str(error), code=error.code, param=error.param)
        case ValidationError():
            return _invalid(error)
        case OverloadedError():
            wait = {"Retry-After": str(math.ceil(error.retry_after_s))}
            return Problem(status=429, message=str(error), code="rate_limit_exceeded", headers=wait)
        case DuplicateRequestError():
            return Problem(status=409, message=str(error), param="request_id")
        case UnavailableError() | EngineStoppedError() | GatewayShutdownError():
            return Problem(status=503, message=str(error), headers={"Retry-After": "1"})
        case GenerationFailedError():
            return Problem(status=500, message=str(error))
        case NotAllowedError():
            return Problem(status=401, message=str(error), code="invalid_api_key")
        case ValueError() | RecursionError():
            message = str(error) or "the request is nested too deeply"
            return Problem(status=400, message=message, param=_named(message))
        case _:
            return None


def _invalid(error: ValidationError) -> Problem:
    """Of the first field that is wrong. Where it may be of several types, pydantic reports an error for each: those
    that are furthest inside the field count, since they are of the type that was meant."""
    reported = error.errors(include_url=False, include_context=False, include_input=False)
    found = [(tuple(part for part in one["loc"] if not _is_type(part)), one["msg"]) for one in reported]
    found = [(path, message) for path, message in found if path[:1] == found[0][0][:1]]
    path = max((path for path, _ in found), key=len)
    (first, *more) = dict.fromkeys(message for place, message in found if place == path)
    message = " or ".join([first, *(one.removeprefix("Input should be ") for one in more)])
    name = ".".join(map(str, path))[:200]
    return Problem(status=400, message=f"{name}: {message}" if name else message, param=name or None)


def _is_type(part: int | str) -> bool:
    """Whether a part of pydantic's path is no field, but one of the types that a field may have."""
    return isinstance(part, str) and (part in ("str", "int", "Speculation") or "[" in part)


def renamed(error: Exception, names: Mapping[str, str]) -> Exception:
    """The error with the body's own name for the field that its message begins with, see `Body.names`."""
    message = str(error)
    inner = _named(message) if isinstance(error, ValueError) else None
    if inner is None or inner not in names:
        return error
    return ValueError(names[inner] + message.removeprefix(inner))


def _named(message: str) -> str | None:
    """The field name at the start of a message; None if there is none."""
    word = message.partition(" ")[0].partition("[")[0].partition(".")[0].rstrip(":")
    return word if word.replace("_", "").isalpha() and word.islower() and len(word) < 40 else None
