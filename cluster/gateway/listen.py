"""A gateway's gRPC servers: the main port, and optionally a port without TLS for health checks."""

import grpc

from outrider.cluster.api.health import Health, add_reflection
from outrider.cluster.gateway.access.auth import Authenticator
from outrider.cluster.gateway.access.settings import AccessSettings
from outrider.cluster.gateway.access.tls import server_credentials
from outrider.cluster.gateway.observability.metrics import GatewayMetrics
from outrider.cluster.gateway.readable import ReadableRequests
from outrider.workers.types.errors import OutriderError

_OPTIONS = (
    ("grpc.so_reuseport", 0),  # a port in use is an error, not a second server on it
    ("grpc.http2.min_ping_interval_without_data_ms", 2_500),
    ("grpc.keepalive_permit_without_calls", 1),
)


class Listeners:
    """Call `start`, then `stop`. Add services to `server` before `start`."""

    def __init__(self, access: AccessSettings, health: Health, metrics: GatewayMetrics, max_message_bytes: int) -> None:
        """Raises OutriderError if the token file is invalid."""
        self._access = access
        options = (*_OPTIONS, ("grpc.max_receive_message_length", max_message_bytes))
        self.authenticator = _authenticator(access, metrics)
        asked_first = () if self.authenticator is None else (self.authenticator,)
        interceptors: tuple[grpc.aio.ServerInterceptor, ...] = (*asked_first, ReadableRequests())
        self.server = grpc.aio.server(options=options, interceptors=interceptors)
        self._health_server = grpc.aio.server(options=_OPTIONS) if access.health_port is not None else None
        self.port = 0
        self.health_port = 0
        health.add_to(self.server)
        add_reflection(self.server)
        if self._health_server is not None:
            health.add_to(self._health_server)

    async def start(self, host: str, port: int) -> None:
        """Raises OutriderError if a port is in use or a certificate cannot be used."""
        self.port = self._bind(host, port)
        if self._health_server is not None and self._access.health_port is not None:
            self.health_port = _plain(self._health_server, host, self._access.health_port, "--health-port")
            await self._health_server.start()
        await self.server.start()

    def _bind(self, host: str, port: int) -> int:
        if self._access.tls is None:
            return _plain(self.server, host, port, "--port")
        credentials = server_credentials(self._access.tls)
        try:
            return int(self.server.add_secure_port(f"{host}:{port}", credentials))
        except RuntimeError as error:
            raise _taken(host, port, "--port") from error

    async def stop(self, grace_s: float) -> None:
        await self.server.stop(grace_s)
        if self._health_server is not None:
            await self._health_server.stop(None)


def _authenticator(access: AccessSettings, metrics: GatewayMetrics) -> Authenticator | None:
    if access.auth_token_file is None:
        return None
    return Authenticator(access.auth_token_file, lambda status: metrics.refused_calls.labels(status=status).inc())


def _plain(server: grpc.aio.Server, host: str, port: int, option: str) -> int:
    try:
        return int(server.add_insecure_port(f"{host}:{port}"))
    except RuntimeError as error:
        raise _taken(host, port, option) from error


def _taken(host: str, port: int, option: str) -> OutriderError:
    return OutriderError(f"cannot listen on {host}:{port}: choose another {option}")
