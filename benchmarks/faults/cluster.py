"""A served cluster for fault injection: two replicas of real engines on a real Ray, and gateway processes.

No fault is injected into the gateway that `serve` itself starts: the cluster's status is read from it.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

import ray

from benchmarks.faults import faulty_rank
from benchmarks.faults.faulty_rank import FaultyRank
from benchmarks.faults.network import HEAD
from benchmarks.faults.nodes import Nodes
from benchmarks.faults.proxy import Proxy
from outrider import Client
from outrider.cluster.api.status import ClusterStatus, ReplicaStatus
from outrider.cluster.config import ServeSettings
from outrider.cluster.controller.gangs.processes import processes_of
from outrider.cluster.controller.names import controller_name
from outrider.cluster.gateway_process import free_port
from outrider.cluster.serve import ServedCluster, make_cluster_spec
from outrider.workers.types.errors import OutriderError

HOST = "127.0.0.1"
READY_S = 120.0
KV_CACHE_BYTES = 96 << 20


class RestartedGateway:
    """A gateway process on its own port, behind a proxy on another. `restart_if_ended` must be called regularly."""

    def __init__(self, controller: str, key: str, host: str, prefix: Sequence[str]) -> None:
        """`prefix`: of the command, to run it on another machine."""
        self._host, self.port = host, free_port(HOST)
        self.proxy = Proxy((host, self.port))
        self._key = key
        command = [*prefix, sys.executable, "-P", "-m", "outrider.cluster.cli", "--log-level", "error", "gateway"]
        command += ["--controller", controller, "--host", host, "--port", str(self.port), "--http-port", "0"]
        command += ["--end-with-stdin", "--cluster-key-file", "-"]
        # 512 streams are more than two cores do within the default wait: this is about faults, not about overload.
        command += ["--max-live-requests", "4096", "--max-queue-wait-s", "600"]
        self._command = [*command, "--drain-grace-s", "2"]
        self._process = self._start()

    @property
    def address(self) -> str:
        return f"{self._host}:{self.port}"

    @property
    def pid(self) -> int:
        return self._process.pid

    def _start(self) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(self._command, stdin=subprocess.PIPE, start_new_session=True)
        assert process.stdin is not None
        process.stdin.write(f"{self._key}\n".encode())
        process.stdin.flush()
        return process

    def restart_if_ended(self) -> None:
        if self._process.poll() is not None:
            self._process = self._start()

    def close(self) -> None:
        self.proxy.close()
        self._process.kill()
        self._process.wait()


class Cluster:
    """Faults reach its processes through `replica`, `gateways` and `controller_pid`, its machines through `nodes`.
    Close it."""

    def __init__(self, nodes: Nodes | None = None, *, replicas: int = 2, stages: int = 2, gateways: int = 2) -> None:
        """`nodes`: where it runs, if not on this machine alone; its network has a machine for each gateway."""
        self.nodes = nodes
        ray.cloudpickle.register_pickle_by_value(faulty_rank)
        self.name = f"chaos-{os.getpid()}"
        self.replicas = replicas
        port, host = free_port(HOST), HOST if nodes is None else nodes.network.address(HEAD)
        settings = ServeSettings(
            name=self.name,
            ray_address="local" if nodes is None else nodes.address,
            port=0,
            http_port=0,
            controller_host="" if nodes is None else host,
            controller_port=port,
            replicas=replicas,
            pipeline_parallel_size=stages,
            kv_cache_memory_bytes=KV_CACHE_BYTES,
            drain_grace_s=5.0,
        )
        spec = make_cluster_spec(settings)
        object.__setattr__(spec, "factory", FaultyRank)
        self._served = ServedCluster(settings, spec, dashboard=False, log_level="error")
        self._start(gateways, f"{host}:{port}", spec.key)

    def _start(self, gateways: int, controller: str, key: str) -> None:
        self.gateways: list[RestartedGateway] = []
        self.failure = ""
        try:
            self._served.start(lambda report: None)
            self.gateways = [self._gateway(number, controller, key) for number in range(gateways)]
        except BaseException:
            self._served.close()
            raise
        self._client = Client(self._served.address)
        self._ended = threading.Event()
        self._restarter = threading.Thread(target=self._restart_ended, name="restarter", daemon=True)
        self._restarter.start()

    def _gateway(self, number: int, controller: str, key: str) -> RestartedGateway:
        if self.nodes is None:
            return RestartedGateway(controller, key, HOST, ())
        network, machine = self.nodes.network, gateway_machine(number)
        return RestartedGateway(controller, key, network.address(machine), network.command_on(machine))

    def _restart_ended(self) -> None:
        """Restarts gateways as Kubernetes does, and the controller as `outrider serve` does."""
        while not self._ended.wait(0.1):
            for gateway in self.gateways:
                gateway.restart_if_ended()
            try:
                self._served.check()
            except OutriderError as error:
                self.failure = f"outrider serve would have ended: {error}"
                return

    @property
    def addresses(self) -> list[str]:
        return [gateway.address for gateway in self.gateways]

    @property
    def proxy_addresses(self) -> list[str]:
        """The gateways' addresses through their proxies."""
        return [gateway.proxy.address for gateway in self.gateways]

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
        """The ready replica at index `number`, modulo their count; None if none is ready."""
        status = self.status()
        ready = [one for one in status.replicas if one.state == "ready"] if status is not None else []
        return ready[number % len(ready)] if ready else None

    def generations(self) -> dict[str, int] | None:
        """Of the ready replicas, by name; None while there is no controller."""
        status = self.status()
        if status is None:
            return None
        return {one.name: one.generation for one in status.replicas if one.state == "ready"}

    def last_endings(self) -> list[str]:
        """Why the previous generation of each replica ended, where there was one."""
        status = self.status()
        return [one.last_ending for one in status.replicas if one.last_ending] if status is not None else []

    def drain(self, replica: str) -> None:
        """Drains the replica, and scales up again so that a new one replaces it."""
        with contextlib.suppress(OutriderError):
            self._client.drain(replica)
            self._client.scale(self.replicas)

    def reopen(self) -> None:
        """Continues stopped gateways, and opens every way that was cut."""
        if self.nodes is not None:
            self.nodes.network.heal()
        for gateway in self.gateways:
            gateway.proxy.unblock()
            with contextlib.suppress(ProcessLookupError):
                os.kill(gateway.pid, signal.SIGCONT)

    def restore(self) -> None:
        """Clears all faults, and waits until every replica and gateway serves again. RuntimeError after READY_S."""
        faulty_rank.clear_hangs()
        self.reopen()
        wait_for(lambda: len(self.generations() or {}) >= self.replicas, "the replicas", self)
        for gateway in self.gateways:
            with Client(gateway.address) as client:
                wait_for(lambda client=client: _serves(client), f"the gateway at {gateway.address}", self)

    def close(self) -> None:
        self._ended.set()
        self._restarter.join()
        self._client.close()
        for gateway in self.gateways:
            gateway.close()
        self._served.cancel_running.set()
        self._served.close()


def gateway_machine(number: int) -> str:
    return f"gateway{number}"


def _serves(client: Client) -> bool:
    """Whether a gateway answers a request."""
    try:
        client.generate("a", max_tokens=1, timeout_s=3.0)
    except OutriderError:
        return False
    return True


def wait_for(holds: Callable[[], bool], what: str, cluster: Cluster) -> None:
    """RuntimeError if `holds` is still false after READY_S, or once `serve` has failed."""
    until = time.monotonic() + READY_S
    while not holds():
        if cluster.failure or time.monotonic() > until:
            raise RuntimeError(cluster.failure or f"{what} did not come back within {READY_S:g} s: {cluster.status()}")
        time.sleep(0.1)
