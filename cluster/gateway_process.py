"""Runs the gateway as a child process and restarts it when it ends. The gateway ends when this process does.

A gateway does not import Ray, so it needs its own interpreter. It connects to the controller by address.
"""

import contextlib
import errno
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from outrider.cluster.gateway.access.settings import AccessSettings
from outrider.workers.serving.rpc.cluster_key import STDIN
from outrider.workers.types.errors import OutriderError

log = logging.getLogger("outrider.serve")
READY_TIMEOUT_S = 30.0
DRAIN_TIMEOUT_S = 25.0
SHORT_LIFE_S = 60.0
FIRST_PAUSE_S = 1.0
LAST_PAUSE_S = 30.0
SERVICE = "outrider.v1.InferenceService"


class GatewayProcess:
    """One gateway on HOST:PORT."""

    def __init__(
        self,
        *,
        controller: str,
        host: str,
        port: int,
        metrics_port: int | None,
        access: AccessSettings,
        cluster_key: str,
        log_level: str,
        http_port: int = 0,
        http_host: str | None = None,
        otlp_endpoint: str = "",
        arguments: Sequence[str] = (),
    ) -> None:
        """`http_port` 0: no HTTP. `arguments`: additional options of `outrider gateway`.

        With TLS the gateway needs a health port, since this process checks readiness without TLS.
        """
        self.address = f"{host}:{port}"
        self._health_address = self.address if access.tls is None else f"{host}:{access.health_port}"
        # -P: modules are not imported from the current directory.
        command = [sys.executable, "-P", "-m", "outrider.cluster.cli", "--log-level", log_level, "gateway"]
        command += ["--controller", controller, "--host", host, "--port", str(port), "--end-with-stdin"]
        command += ["--http-port", str(http_port), "--http-host", http_host or host]
        command += ["--cluster-key-file", STDIN, *access.arguments()]
        if metrics_port is not None:
            command += ["--metrics-port", str(metrics_port)]
        command += arguments
        if otlp_endpoint:
            command += ["--otlp-endpoint", otlp_endpoint]
        self._command, self._cluster_key = command, cluster_key
        self._was_ready = False
        self._short_lives = 0  # consecutive
        self._start_at: float | None = None  # time of the next start, after the gateway has ended
        self._start()

    def _start(self) -> None:
        # In a new session, so that Ctrl-C reaches only this process, which then stops everything in order.
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, start_new_session=True)
        self._started_at = time.monotonic()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended; `check` reports it
            self._process.stdin.write(f"{self._cluster_key}\n".encode())
            self._process.stdin.flush()

    def wait_until_ready(self, stop: threading.Event) -> None:
        """Returns when the gateway is ready or `stop` is set. Raises OutriderError if it ended or takes too long."""
        until = time.monotonic() + READY_TIMEOUT_S
        with grpc.insecure_channel(self._health_address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            while not stop.is_set() and not _is_serving(health):
                self.check()
                if time.monotonic() > until:
                    raise OutriderError(f"the gateway is not ready {READY_TIMEOUT_S:.0f} s after its start")
                stop.wait(0.1)
        self._was_ready = True

    def check(self) -> None:
        """Restarts the gateway if it has ended, with increasing delays if it ends repeatedly.

        Raises OutriderError if it exited before it was ever ready, since its settings are then at fault.
        """
        status = self._process.poll()
        if status is None:
            return
        now = time.monotonic()
        if self._start_at is None:
            self._start_at = now + self._pause_s(status, now - self._started_at)
        if now >= self._start_at:
            self._start_at = None
            self._start()

    def _pause_s(self, status: int, lived_s: float) -> float:
        """Delay before the next start, after it ran for `lived_s`."""
        if status >= 0 and not self._was_ready:
            raise OutriderError(f"the gateway on {self.address} ended with status {status}")
        self._short_lives = self._short_lives + 1 if lived_s < SHORT_LIFE_S else 0
        pause_s = pause_before_start_s(self._short_lives)
        how = f"ended with status {status}" if status >= 0 else f"was killed by signal {-status}"
        log.warning("the gateway on %s %s: it is restarted in %g s", self.address, how, pause_s)
        return pause_s

    def close(self, cancel_running: threading.Event) -> None:
        """Drains the gateway until a timeout or until `cancel_running` is set, then kills it."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        until = time.monotonic() + DRAIN_TIMEOUT_S
        while self._process.poll() is None and time.monotonic() < until and not cancel_running.is_set():
            time.sleep(0.05)
        self._process.kill()
        self._process.wait()


def pause_before_start_s(short_lives: int) -> float:
    """0 after a long run or the first short one; then increasing."""
    return min(LAST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (short_lives - 2)) if short_lives > 1 else 0.0


def _is_serving(health: Any) -> bool:  # grpc_health generates its stub without types
    try:
        answer = health.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=2.0)
    except grpc.RpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def check_port(host: str, port: int, what: str = "--port") -> None:
    """Raises OutriderError if HOST:PORT cannot be used. Called early, before the model loads."""
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = infos[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise OutriderError(f"{host}:{port} is in use by another program: choose another {what}") from error
        raise OutriderError(f"cannot listen on {host}:{port} ({error.strerror}): see --host and {what}") from error


def free_port(host: str) -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
