"""The Ray actor around a rank: start, probe, stop. Knows nothing of rounds or tensors.

The rank runs in a thread of its own, so a probe answers while a round is computed: a rank that does not answer is
frozen or gone, never merely busy. Torch loads in that thread too, so importing this module (as the controller does)
stays cheap.
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
from outrider.workers.serving.metrics import MetricsPublisher
from outrider.workers.serving.rank import Rank
from outrider.workers.serving.rank_status import RankStatus
from outrider.workers.serving.request_times import Observation
from outrider.workers.types import logs
from outrider.workers.types.errors import OutriderError

log = logging.getLogger("outrider.rank")
STOP_TIMEOUT_S = 5.0
LOOPBACK = "127.0.0.1"  # where the ranks of a gang on one node meet


class RunnableRank(Protocol):
    """The part of workers.rank.Rank that this shell drives; tests put a lighter one in its place."""

    def load(self) -> None: ...
    def run(self) -> None: ...
    def stop(self) -> None: ...
    def status(self) -> RankStatus: ...
    def take_observations(self) -> list[Observation]: ...


RankFactory = Callable[[RankSpec], RunnableRank]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A rank's answer to "how are you"."""

    pid: int
    host: str
    node_id: str  # Ray's
    status: RankStatus | None  # None: not told to start yet
    visible_devices: str = ""  # of its node's accelerators, as CUDA_VISIBLE_DEVICES has it; empty on a CPU
    interface: str = ""  # the network interface through which it meets ranks on other nodes


class RankShell:
    """One rank in one process. Its methods are called from several threads of the actor."""

    _label = "a rank"  # Ray asks for the representation even where the constructor never ran

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
        """This node's address and a port that is free on it now, for the gang to meet at."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def start(self, spec: RankSpec) -> None:
        """Returns at once; `probe` says how it goes."""
        logs.configure("info", replica=spec.replica, generation=spec.generation, rank=spec.rank)  # into its log at Ray
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
        except Exception as error:  # whatever it was, the controller must hear of it
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
        """Ends the rank between rounds; what has not ended after `STOP_TIMEOUT_S` is the caller's to kill."""
        self._stopping.set()
        if self._rank is not None:
            self._rank.stop()
        if self._thread is not None:
            self._thread.join(STOP_TIMEOUT_S)
