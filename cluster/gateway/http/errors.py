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
    """Only the first error: pydantic reports one for each type of a union."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = ".".join(str(part) for part in first["loc"])[:200]
    return Problem(status=400, message=f"{path}: {first['msg']}" if path else first["msg"], param=path or None)


def _named(message: str) -> str | None:
    """The field name at the start of a message; None if there is none."""
    word = message.partition(" ")[0].partition("[")[0].partition(".")[0].rstrip(":")
    return word if word.replace("_", "").isalpha() and word.islower() and len(word) < 40 else None
