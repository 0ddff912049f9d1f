"""The cluster key, which all processes of a cluster share: the controller and the leaders refuse calls without it.

It is sent in gRPC metadata only, and never appears in process arguments, logs or status. With an empty key a service
accepts every call, which is meant for tests only.
"""

import hmac
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc

from outrider.workers.types.errors import OutriderError

HEADER = "outrider-cluster-key"
HEALTH = "/grpc.health.v1.Health/"  # health probes have no key
SHORTEST = 32  # characters
STDIN = "-"

Metadata = tuple[tuple[str, str], ...]
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]


def draw_key() -> str:
    """A new random key of 256 bits."""
    return secrets.token_urlsafe(32)


def read_key(path: str) -> str:
    """Reads the key from a file, or from the first line of stdin ("-"). OutriderError if it is absent or too short."""
    key = _first_line_of_stdin() if path == STDIN else _read(Path(path))
    if len(key) < SHORTEST or not key.isascii() or not key.isprintable():
        raise OutriderError(f"the cluster key in {path} must be one line of at least {SHORTEST} printable characters")
    return key


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise OutriderError(f"cannot read the cluster key {path}: {getattr(error, 'strerror', error)}") from error


def _first_line_of_stdin() -> str:
    """Reads byte by byte, so that the rest of stdin is left for the next reader."""
    line = b""
    while (byte := os.read(0, 1)) not in (b"", b"\n"):
        line += byte
    return line.decode(errors="replace").strip()


def key_metadata(key: str) -> Metadata:
    """The metadata that a client sends with each call."""
    return ((HEADER, key),) if key else ()


class KeyInterceptor(grpc.aio.ServerInterceptor):
    """Refuses every call without the key, except health checks, before any of its messages is read."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()

    async def intercept_service(self, continuation: Continuation, details: grpc.HandlerCallDetails) -> Any:
        given = dict(details.invocation_metadata or ()).get(HEADER, "")
        if details.method.startswith(HEALTH) or hmac.compare_digest(str(given).encode(), self._key):
            return await continuation(details)
        return refusal(grpc.StatusCode.UNAUTHENTICATED, "this service is the cluster's own: give its cluster key")


def interceptors(key: str) -> tuple[KeyInterceptor, ...]:
    """The interceptors to pass to the server's constructor."""
    return (KeyInterceptor(key),) if key else ()


def refusal(code: grpc.StatusCode, message: str) -> Any:
    """A handler for any method (unary or streaming) that aborts the call before any message is read."""

    async def refuse(request_iterator: AsyncIterator[bytes], context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
        await context.abort(code, message)

    return grpc.stream_stream_rpc_method_handler(refuse)
