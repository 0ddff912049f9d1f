"""The controller: a named Ray actor that observes a replica, reconciles it with what is wanted, and tells the gateways.

It serves ControllerService to gateways over gRPC; Ray calls come from `outrider serve` alone.
"""

import asyncio
import logging
import time
from dataclasses import dataclass

import grpc
import ray

from outrider.cluster.controller_service import ControllerService, bind
from outrider.cluster.gang import fleet, prefix
from outrider.cluster.gateway.health import Health
from outrider.cluster.reconcile import Action, End, Phase, Publish, Start, Stop, reconcile
from outrider.cluster.replica import Charge, Replica
from outrider.cluster.routes import Ending, Route, RouteTable
from outrider.proto import cluster_pb2_grpc
from outrider.workers.cluster_key import interceptors

log = logging.getLogger("outrider.controller")
TICK_S = 0.25
LATE_S = 2.0  # a tick this late means that the controller was held up, and no rank is to blame for the silence
OWNER_SILENT_S = 5.0
REPLICA = "r0"


def controller_name(cluster: str) -> str:
    return f"{prefix(cluster)}controller"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `outrider serve` hears with every heartbeat."""

    phase: Phase
    problem: str
    loaded: tuple[float, ...]  # by rank: share of its weights, 0..1
    states: tuple[str, ...]  # by rank
    has_mtp: bool  # whether the model can draft for itself; True until it is known


class Controller:
    """Keeps one replica as it is wanted. Every method runs in the actor's asyncio loop."""

    def __init__(self, charge: Charge) -> None:
        self._charge = charge
        self._wanted = True
        self._owner_seen_at = time.monotonic()
        self._replica = Replica(REPLICA, charge)
        self._table = RouteTable()
        self._acting = asyncio.Lock()  # one set of actions at a time, each to its end
        self._ticks: asyncio.Task[None] | None = None
        self._server: grpc.aio.Server | None = None

    async def open(self) -> str:
        """Starts to serve gateways and to reconcile. Returns the HOST:PORT that gateways connect to."""
        options = [("grpc.http2.min_ping_interval_without_data_ms", 10_000), ("grpc.so_reuseport", 0)]
        self._server = grpc.aio.server(options=options, interceptors=interceptors(self._charge.key))
        service = ControllerService(self._charge.cluster, self._charge.model_name, self._charge.model_path, self)
        cluster_pb2_grpc.add_ControllerServiceServicer_to_server(service, self._server)
        Health().add_to(self._server)
        host = self._charge.controller_host or ("127.0.0.1" if len(fleet()) == 1 else ray.util.get_node_ip_address())
        port = bind(self._server, host, self._charge.controller_port)
        await self._server.start()
        self._ticks = asyncio.create_task(self._reconcile_forever(), name="reconcile")
        return f"{host}:{port}"

    @property
    def replicas(self) -> tuple[Replica, ...]:
        return (self._replica,)

    @property
    def table(self) -> RouteTable:
        return self._table

    async def heartbeat(self) -> Report:
        """The owner is alive; this is how things stand."""
        self._owner_seen_at = time.monotonic()
        ranks = self._replica.observed
        info = self._replica.leader.info
        probes = [self._replica.probe_of(rank.rank) for rank in ranks]
        return Report(
            phase=self._replica.phase,
            problem=self._replica.problem,
            loaded=tuple(probe.status.loaded if probe and probe.status else 0.0 for probe in probes),
            states=tuple(rank.state for rank in ranks),
            has_mtp=info.has_mtp if info is not None else True,
        )

    async def owner_alive(self) -> bool:
        """Whether the `outrider serve` that started this controller still sends heartbeats."""
        return time.monotonic() - self._owner_seen_at < OWNER_SILENT_S

    async def drain(self) -> None:
        """Tells the gateways to take no more, then ends the ranks. The actor itself is the owner's to kill."""
        self._wanted = False
        await self._table.drain()
        await self._reconcile()
        if self._ticks is not None:
            self._ticks.cancel()
        if self._server is not None:
            await self._server.stop(grace=1.0)

    async def _reconcile_forever(self) -> None:
        last = time.monotonic()
        while True:
            now = time.monotonic()
            if now - last > LATE_S:
                self._replica.forgive(now)
            last = now
            try:
                await self._reconcile()
            except Exception:
                log.exception("an action failed; the next tick decides again")
            await asyncio.sleep(TICK_S)

    async def _reconcile(self) -> None:
        async with self._acting:
            for action in self._decide():
                await self._act(action)

    def _decide(self) -> list[Action]:
        return reconcile(
            wanted=self._wanted,
            phase=self._replica.phase,
            problem=self._replica.problem,
            ranks=self._replica.observed,
            now=time.monotonic(),
            deadlines=self._charge.deadlines,
        )

    async def _act(self, action: Action) -> None:
        replica = self._replica
        log.info("%s generation %d: %s", replica.name, replica.generation, action)
        match action:
            case Start():
                replica.start()
            case Publish():
                replica.phase = Phase.READY
                address = replica.leader.service_address
                await self._table.publish(Route(replica=replica.name, generation=replica.generation, address=address))
            case End(reason):
                published, replica.phase, replica.problem = replica.phase is Phase.READY, Phase.FAILED, reason
                if published:
                    ending = Ending(replica=replica.name, generation=replica.generation, reason=reason)
                    await self._table.withdraw(ending)
                await replica.destroy(gently=False)
            case Stop():
                ready, replica.phase = replica.phase is Phase.READY, Phase.DRAINING
                await replica.destroy(gently=ready)
