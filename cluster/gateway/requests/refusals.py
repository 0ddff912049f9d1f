"""The gRPC status for each type of error that refuses a request."""

import grpc

from outrider.cluster.api.errors import DuplicateRequestError, UnavailableError
from outrider.workers.types.errors import EngineStoppedError, OverloadedError

_REFUSALS: tuple[tuple[type[Exception], grpc.StatusCode], ...] = (
    (OverloadedError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (DuplicateRequestError, grpc.StatusCode.ALREADY_EXISTS),
    (UnavailableError, grpc.StatusCode.UNAVAILABLE),
    (EngineStoppedError, grpc.StatusCode.UNAVAILABLE),
    (ValueError, grpc.StatusCode.INVALID_ARGUMENT),
)
REFUSALS = tuple(kind for kind, _ in _REFUSALS)  # `Inference.events` raises these, only before the first event


def status_code(error: Exception) -> grpc.StatusCode:
    """The gRPC status of one of REFUSALS."""
    return next(code for kind, code in _REFUSALS if isinstance(error, kind))
