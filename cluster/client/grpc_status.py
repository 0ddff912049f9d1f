"""Details of a gRPC status besides its code: whether a server was reached, RetryInfo."""

import re
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

NOT_REACHED = re.compile(
    r"(?:failed to connect to all addresses; last error: \w+: \S+: (?:Failed to connect to remote host: )?"
    r"|errors resolving .*: )([^]]+)"
)  # prefixes of gRPC's messages
_TOO_LARGE = "larger than max"  # gRPC's wording; a retry would not help
_DETAILS_KEY = "grpc-status-details-bin"


def was_reached(error: grpc.RpcError) -> bool:
    """Whether the connection to a server was established."""
    return NOT_REACHED.match(error.details() or "") is None


def is_too_large(error: grpc.RpcError) -> bool:
    return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE in (error.details() or "")


def retry_delay_s(error: grpc.RpcError) -> float | None:
    """The delay of RetryInfo, from either of gRPC's two metadata types."""
    pairs: Any = error.trailing_metadata() or ()
    for key, value in pairs:
        if key == _DETAILS_KEY and isinstance(value, bytes):
            for detail in status_pb2.Status.FromString(value).details:
                retry = error_details_pb2.RetryInfo()
                if detail.Unpack(retry):
                    return float(retry.retry_delay.ToMilliseconds()) / 1000
    return None
