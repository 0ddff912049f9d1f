"""Runs one rank inside a Ray actor: start, probe, stop. It does not depend on rounds or tensors.

The rank runs in its own thread, so probes are answered while a round is computed: a rank that does not answer is
frozen or dead, not busy. Torch is imported in that thread too, so that the controller can import this module quickly.
"""

import logging
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import ray

from outrider.workers.loading.rank_spec import RankSpec
from outrider.workers.serving import network
from outrider.workers.serving.observability.metrics import MetricsPublisher
from outrider.workers.serving.observability.request_times import Observation
from outrider.workers.serving.rank import Rank
from outrider.workers.serving.rank_status import RankStatus
from outrider.workers.types import logs
from outrider.workers.types.errors import OutriderError

log = logging.getLogger("outrider.rank")
STOP_TIMEOUT_S = 5.0
LOOPBACK = "127.0.0.1"  # the master address of a gang whose ranks are all on one node


class RunnableRank(Protocol):
    """The part of Rank that RankShell uses; tests pass a lighter implementation."""

    def load(self) -> None: ...
    def run(self) -> None: ...
    def stop(self) -> None: ...
    def status(self) -> RankStatus: ...
    def take_observations(self) -> list[Observation]: ...


RankFactory = Callable[[RankSpec], RunnableRank]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A rank's answer to a health probe."""

    pid: int
    host: str
    node_id: str  # Ray's node id
    status: RankStatus | None  # None: `start` was not called yet
    visible_devices: str = ""  # device ids as in CUDA_VISIBLE_DEVICES; empty on a CPU
    interface: str = ""  # the network interface used for collectives with other nodes


class RankShell:
    """The actor class: one rank in one process. Ray calls its methods from several threads."""

    _label = "a rank"  # Ray calls __repr__ even if the constructor did not run

    def __init__(self, label: str, factory: RankFactory = Rank) -> None:
        self._label = label
        self._factory = factory
        self._rank: RunnableRank | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._error = ""
        self._interface = ""

    def __repr__(self) -> str:
        """How the Ray dashboard and Ray's logs name this actor."""
        return self._label

    def endpoint(self) -> tuple[str, int]:
        """This node's IP address and a free port, for the gang's process group (torch.distributed's master)."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def start(self, spec: RankSpec) -> None:
        """Loads and runs the rank in a thread and returns at once; `probe` reports its state."""
        logs.configure("info", replica=spec.replica, generation=spec.generation, rank=spec.rank)  # Ray keeps the log
        alone = spec.master_address == LOOPBACK
        self._interface = "lo" if alone else network.choose_interface(ray.util.get_node_ip_address())
        self._rank = self._factory(spec)
        self._thread = threading.Thread(target=self._live, args=(self._rank, spec), name="rank", daemon=True)
        self._thread.start()

    def _live(self, rank: RunnableRank, spec: RankSpec) -> None:
        try:
            rank.load()
            self._publish_metrics(rank, spec)
            rank.run()
            self._error = "" if self._stopping.is_set() else "the rank ended without being told to"
        except Exception as error:  # any error is reported to the controller through `probe`
            log.exception("%s ended", self._label)
            known = isinstance(error, OutriderError | ValueError)
            self._error = str(error) if known else f"{type(error).__name__}: {error}"

    def _publish_metrics(self, rank: RunnableRank, spec: RankSpec) -> None:
        stage, leads = spec.mesh.place(spec.rank).stage, spec.rank == 0
        publisher = MetricsPublisher(spec.replica, spec.generation, spec.restarts, stage=stage, leads=leads)
        threading.Thread(target=publisher.run, args=(rank, self._stopping), name="metrics", daemon=True).start()

    def probe(self) -> Probe:
        context = ray.get_runtime_context()
        return Probe(
            pid=os.getpid(),
            host=socket.gethostname(),
            node_id=context.get_node_id(),
            status=self._status(),
            visible_devices=",".join(context.get_accelerator_ids().get("GPU", ())),
            interface=self._interface,
        )

    def _status(self) -> RankStatus | None:
        if self._rank is None:
            return None
        status = self._rank.status()
        return replace(status, state="failed", error=self._error) if self._error else status

    def stop(self) -> None:
        """Stops the rank after the current round. The caller kills the actor if it still runs after STOP_TIMEOUT_S."""
        self._stopping.set()
        if self._rank is not None:
            self._rank.stop()
        if self._thread is not None:
            self._thread.join(STOP_TIMEOUT_S)
