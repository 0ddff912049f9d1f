"""Runs uvicorn in the gateway's event loop. The gateway handles signals, not uvicorn."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from outrider.cluster.gateway.access.settings import TlsFiles
from outrider.cluster.gateway.access.tls import ssl_context
from outrider.workers.types.errors import OutriderError

_KEEP_ALIVE_S = 75  # longer than proxies and clients keep idle connections
_STOP_GRACE_S = 1
_BACKLOG = 2048


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures none: the gateway handles them."""
        yield


class HttpServer:
    """Serves an ASGI application. `start` once, then `stop`."""

    def __init__(self, app: ASGIApp, tls: TlsFiles | None) -> None:
        """Raises OutriderError if a certificate cannot be used."""
        context = None if tls is None else ssl_context(tls)
        factory = None if context is None else (lambda config, default: context)
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="error",
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_STOP_GRACE_S,
            ssl_context_factory=factory,
        )
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> int:
        """Returns the port, which the system chooses if `port` is 0. OutriderError if the port is taken."""
        bound = _bound(host, port)
        self._task = asyncio.create_task(self._server.serve(sockets=[bound]), name="http")
        while not self._server.started and not self._task.done():
            await asyncio.sleep(0.005)
        if self._task.done():
            raise OutriderError(f"HTTP cannot be served on {host}:{port}")
        number: int = bound.getsockname()[1]
        return number

    async def stop(self) -> None:
        if self._task is not None:
            self._server.should_exit = True
            await asyncio.gather(self._task, return_exceptions=True)


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
        # Accepted sockets inherit it. asyncio does not set it for a socket made without a protocol number.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except OSError as error:
        raise OutriderError(f"cannot listen on {host}:{port} ({error.strerror}): choose another --http-port") from error
