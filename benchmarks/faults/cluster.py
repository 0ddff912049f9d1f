"""A served cluster that is there to be harmed: two replicas of real engines on a real Ray, and gateways as processes.

The gateway that `serve` itself starts is left alone: it says how things stand.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import ray
from faults import troubled
from faults.troubled import TroubledRank
from faults.wire import Wire

from outrider import Client
from outrider.cluster.config import ServeSettings
from outrider.cluster.gateway_process import free_port
from outrider.cluster.leftovers import processes_of
from outrider.cluster.names import controller_name
from outrider.cluster.serve import ServedCluster, make_charge
from outrider.cluster.status import ClusterStatus, ReplicaStatus
from outrider.workers.types.errors import OutriderError

HOST = "127.0.0.1"
READY_S = 120.0
KV_CACHE_BYTES = 96 << 20


class GatewayUnderFire:
    """A gateway process on a port of its own, started again as soon as it has ended."""

    def __init__(self, controller: str, key: str) -> None:
        self.port = free_port(HOST)
        self.wire = Wire(self.port)
        self._key = key
        command = [sys.executable, "-P", "-m", "outrider.cluster.cli", "--log-level", "error", "gateway"]
        command += [
            "--controller",
            controller,
            "--host",
            HOST,
            "--port",
            str(self.port),
            "--http-port",
            "0",
            "--end-with-stdin",
        ]
        self._command = [*command, "--cluster-key-file", "-", "--max-live-requests", "4096", "--drain-grace-s", "2"]
        self._process = self._start()

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        return self._process.pid

    def _start(self) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(self._command, stdin=subprocess.PIPE, start_new_session=True)
        assert process.stdin is not None
        process.stdin.write(f"{self._key}\n".encode())
        process.stdin.flush()
        return process

    def keep(self) -> None:
        """Starts it again if it has ended."""
        if self._process.poll() is not None:
            self._process = self._start()

    def close(self) -> None:
        self.wire.close()
        self._process.kill()
        self._process.wait()


class Cluster:
    """A context manager. Faults reach its processes by `replica`, `gateways` and `controller_pid`."""

    def __init__(self, *, replicas: int = 2, stages: int = 2, gateways: int = 2) -> None:
        ray.cloudpickle.register_pickle_by_value(troubled)
        self.name = f"chaos-{os.getpid()}"
        self.replicas = replicas
        port = free_port(HOST)
        settings = ServeSettings(
            name=self.name,
            ray_address="local",
            port=0,
            controller_port=port,
            replicas=replicas,
            pipeline_parallel_size=stages,
            kv_cache_memory_bytes=KV_CACHE_BYTES,
            drain_grace_s=5.0,
        )
        charge = make_charge(settings)
        object.__setattr__(charge, "factory", TroubledRank)
        self._served = ServedCluster(settings, charge, dashboard=False, log_level="error")
        self._start(gateways, f"{HOST}:{port}", charge.key)

    def _start(self, gateways: int, controller: str, key: str) -> None:
        self.gateways: list[GatewayUnderFire] = []
        self.failure = ""
        try:
            self._served.start(lambda report: None)
            self.gateways = [GatewayUnderFire(controller, key) for _ in range(gateways)]
        except BaseException:
            self._served.close()
            raise
        self._client = Client(self._served.address)
        self._ended = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
        self._keeper.start()

    def _keep(self) -> None:
        """As `outrider serve` does, and Kubernetes does for gateways."""
        while not self._ended.wait(0.1):
            for gateway in self.gateways:
                gateway.keep()
            try:
                self._served.check()
            except OutriderError as error:
                self.failure = f"serve would have ended: {error}"
                return

    @property
    def addresses(self) -> list[str]:
        return [gateway.address for gateway in self.gateways]

    @property
    def wires(self) -> list[str]:
        """Addresses behind which each gateway is too, and which can be cut."""
        return [gateway.wire.address for gateway in self.gateways]

    @property
    def controller_pid(self) -> int | None:
        """None while there is no controller."""
        found = processes_of([controller_name(self.name)])
        return next((pid for _, pid in found.values()), None)

    def status(self) -> ClusterStatus | None:
        """None while there is no controller."""
        with contextlib.suppress(OutriderError):
            return self._client.status(timeout_s=2.0)
        return None

    def replica(self, number: int) -> ReplicaStatus | None:
        """One of the ready ones, counted round."""
        status = self.status()
        ready = [one for one in status.replicas if one.state == "ready"] if status is not None else []
        return ready[number % len(ready)] if ready else None

    def generations(self) -> dict[str, int] | None:
        """Of the ready replicas."""
        status = self.status()
        if status is None:
            return None
        return {one.name: one.generation for one in status.replicas if one.state == "ready"}

    def last_endings(self) -> list[str]:
        """Why the latest generations before the present ones ended, where there were any."""
        status = self.status()
        return [one.last_ending for one in status.replicas if one.last_ending] if status is not None else []

    def drain(self, replica: str) -> None:
        """It leaves, and another comes in its place."""
        with contextlib.suppress(OutriderError):
            self._client.drain(replica)
            self._client.scale(self.replicas)

    def thaw(self) -> None:
        """Frozen gateways go on, and the ways to them are whole again."""
        for gateway in self.gateways:
            gateway.wire.mend()
            with contextlib.suppress(ProcessLookupError):
                os.kill(gateway.pid, signal.SIGCONT)

    def mend(self) -> None:
        """Returns once everything is there again. RuntimeError if it does not come."""
        troubled.heal()
        self.thaw()
        wait_for(lambda: len(self.generations() or {}) >= self.replicas, "the replicas", self)
        for gateway in self.gateways:
            with Client(gateway.address) as client:
                wait_for(lambda client=client: _serves(client), f"the gateway at {gateway.address}", self)

    def close(self) -> None:
        self._ended.set()
        self._keeper.join()
        self._client.close()
        for gateway in self.gateways:
            gateway.close()
        self._served.hurry.set()
        self._served.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _serves(client: Client) -> bool:
    """Whether a gateway answers a request."""
    try:
        client.generate("a", max_tokens=1, timeout_s=3.0)
    except OutriderError:
        return False
    return True


def wait_for(holds: Callable[[], bool], what: str, cluster: Cluster) -> None:
    until = time.monotonic() + READY_S
    while not holds():
        if cluster.failure or time.monotonic() > until:
            raise RuntimeError(cluster.failure or f"{what} did not come back within {READY_S:g} s: {cluster.status()}")
        time.sleep(0.1)
