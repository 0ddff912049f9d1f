"""The controller: a named Ray actor that reconciles replicas with their desired state and updates the gateways.

It serves ControllerService to gateways over gRPC. Only `outrider serve` calls it through Ray. Tokens do not pass
through it, so serving continues if it crashes: Ray restarts it, and it adopts the running ranks (record.py).
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence

import grpc
import ray

from outrider.cluster.api.load_report import Load
from outrider.cluster.controller import record
from outrider.cluster.controller.cluster_spec import ClusterSpec
from outrider.cluster.controller.gangs.nodes import draining_nodes, survey
from outrider.cluster.controller.leftovers import remove_all_but
from outrider.cluster.controller.names import controller_name
from outrider.cluster.controller.reconcile import Action, Goal, Phase, reconcile
from outrider.cluster.controller.record import ClusterRecord, RecordWriter
from outrider.cluster.controller.replicas import roster
from outrider.cluster.controller.replicas.action_runner import ActionRunner
from outrider.cluster.controller.replicas.replica import Replica
from outrider.cluster.controller.replicas.report import Report, report_on
from outrider.cluster.controller.replicas.roster import Member
from outrider.cluster.controller.routes import RouteTable
from outrider.cluster.controller.scaling.autoscale import Autoscaler, WaitingLoads
from outrider.cluster.controller.scaling.kubernetes_scaling import follow, machine_provider, wanted_replicas
from outrider.cluster.controller.scaling.machines import MachineUpdater, Need, unused
from outrider.cluster.controller.service import serve
from outrider.workers.serving.actor import LOOPBACK
from outrider.workers.types import logs

log = logging.getLogger("outrider.controller")
TICK_S = 0.25
LATE_S = (
    2.0  # a tick this late means that the controller was blocked, so missing probe answers say nothing about the ranks
)
LOOK_AT_NODES_S = 1.0
OWNER_SILENT_S = 5.0
REMEMBERED_HOSTS = 256


class Controller:
    """Keeps the desired number of replicas running. Every method runs in the actor's asyncio loop."""

    def __init__(self, spec: ClusterSpec) -> None:
        self._spec = spec
        self._desired = spec.replicas
        self._owner_seen_at = time.monotonic()
        self._replicas: dict[str, Replica] = {}
        self._generations: dict[str, int] = {}  # last generation of every replica name that was ever used
        self._former_hosts: deque[str] = deque(maxlen=REMEMBERED_HOSTS)  # hosts of removed replicas
        self._ever_ready = self._ending = False
        self._autoscaler = Autoscaler(spec.autoscale, spec.engine.max_num_seqs) if spec.autoscale else None
        self._waiting = WaitingLoads()
        self._machines = MachineUpdater(machine_provider(spec), self._machines_needed)
        self._table = RouteTable()
        self._background: list[asyncio.Task[None]] = []
        self._server: grpc.aio.Server | None = None
        self._address = ""
        self._record = RecordWriter(spec.cluster, self._current_record)
        self._actions = ActionRunner(self._table, self._record, lambda: self._pending, self._note_ready)
        self._opening = asyncio.create_task(
            self._open(), name="open"
        )  # started here, since nothing calls `open` after a restart

    async def open(self) -> str:
        """Waits until it serves gateways and reconciles. Returns the HOST:PORT that gateways connect to."""
        return await asyncio.shield(self._opening)

    async def _open(self) -> str:
        logs.configure("info")  # goes to Ray's log of this actor
        before = await asyncio.to_thread(record.load, self._spec.cluster)
        if before is not None:
            await self._recover(before)
        await self._table.expect(self._pending)
        self._address = await self._listen(before.address if before is not None else "")
        await self._reconcile()
        self._background = [
            asyncio.create_task(self._reconcile_forever(), name="reconcile"),
            asyncio.create_task(self._machines.run(), name="machines"),
            asyncio.create_task(self._watch_nodes(), name="nodes"),
            asyncio.create_task(follow(wanted_replicas(self._spec), self), name="scale"),
        ]
        return self._address

    async def _listen(self, before: str) -> str:
        """Listens at the previous controller's address if that was on this node, since gateways reconnect to it."""
        here = ray.util.get_node_ip_address()
        former_host, _, former_port = before.rpartition(":")
        host = self._spec.controller_host or (former_host if former_host in (LOOPBACK, here) else "")
        host = host or (LOOPBACK if len(survey()) == 1 else here)
        port = self._spec.controller_port or (int(former_port) if former_host == host else 0)
        self._server, port = await serve(self._spec, self, host, port)
        return f"{host}:{port}"

    async def _recover(self, before: ClusterRecord) -> None:
        """Restores the state of the previous controller and adopts its ranks."""
        kept = (controller_name(self._spec.cluster), *before.names_to_keep(self._spec.cluster))
        removed = await asyncio.to_thread(remove_all_but, kept, self._spec.cluster)
        self._desired = before.desired if before.configured == self._spec.replicas else self._spec.replicas
        self._ever_ready, self._ending = before.ever_ready, before.ending
        self._generations = dict(before.generations)
        self._former_hosts.extend(before.former_hosts)
        for one in before.replicas:
            replica = self._replicas[one.name] = Replica(one.name, self._spec, one.generation)
            replica.goal, replica.last_ending, replica.restarts = one.goal, one.last_ending, one.restarts
            if one in before.survivors:
                await asyncio.to_thread(replica.adopt, one)
                replica.watch()
            if replica.phase is Phase.READY:
                await self._table.publish(replica.route)
        adopted = [one.name for one in before.survivors]
        logs.event(log, logging.WARNING, "controller restarted", adopted=adopted, removed=removed, wanted=self._desired)

    def _current_record(self) -> ClusterRecord:
        return ClusterRecord(
            identity=self._spec.identity,
            address=self._address,
            configured=self._spec.replicas,
            desired=self._desired,
            ever_ready=self._ever_ready,
            ending=self._ending,
            replicas=tuple(replica.record for replica in self.replicas),
            generations=dict(self._generations),
            former_hosts=tuple(self._former_hosts),
        )

    @property
    def replicas(self) -> Sequence[Replica]:
        """In the order of their numbers."""
        return [self._replicas[name] for name in sorted(self._replicas, key=roster.number)]

    @property
    def desired(self) -> int:
        """The desired number of replicas."""
        return self._desired

    @property
    def last_scaling(self) -> str:
        """The autoscaler's last change and its reason."""
        return self._autoscaler.last_change if self._autoscaler is not None else ""

    @property
    def machines_problem(self) -> str:
        """Why the required machines are not provided; empty if they are."""
        return self._machines.problem

    @property
    def table(self) -> RouteTable:
        return self._table

    async def heartbeat(self) -> Report:
        """Called by the owner, `outrider serve`, to show that it is alive. Returns the state of the replicas."""
        await self.open()
        self._owner_seen_at = time.monotonic()
        infos = [replica.leader.info for replica in self.replicas]
        return Report(
            replicas=tuple(report_on(replica) for replica in self.replicas),
            ever_ready=self._ever_ready,
            has_mtp=all(info.has_mtp for info in infos if info is not None),
        )

    async def owner_alive(self) -> bool:
        """Whether the `outrider serve` that started this controller still sends heartbeats."""
        return time.monotonic() - self._owner_seen_at < OWNER_SILENT_S

    async def scale(self, replicas: int) -> None:
        """Sets the desired number of replicas."""
        logs.event(log, logging.INFO, "scale", replicas=replicas, before=self._desired)
        self._desired = replicas
        await self._reconcile()

    def report_waiting(self, gateway: str, load: Load) -> None:
        """Records the load that waits at a gateway."""
        self._waiting.report(gateway, load, time.monotonic())

    async def drain_replica(self, name: str) -> None:
        """Drains and removes a replica, and lowers the desired number by one. Raises KeyError for an unknown name."""
        if self._replicas[name].goal is Goal.SERVE:
            self._replicas[name].goal = Goal.DRAIN
            self._desired = max(0, self._desired - 1)
            await self._reconcile()

    async def drain(self) -> None:
        """Makes gateways refuse new requests, then stops all ranks. The owner kills the actor itself."""
        await asyncio.wait([self._opening])
        self._ending = True
        await self._table.drain()
        while self._replicas:
            await self._reconcile()
            await asyncio.wait([*self._actions.tasks, asyncio.create_task(asyncio.sleep(TICK_S))])
        for task in self._background:
            task.cancel()
        if self._server is not None:
            await self._server.stop(grace=1.0)

    async def _reconcile_forever(self) -> None:
        last = time.monotonic()
        while True:
            now = time.monotonic()
            if now - last > LATE_S:
                for replica in self.replicas:
                    replica.reset_silence(now)
            last = now
            try:
                await self._reconcile()
            except Exception:
                log.exception("reconciling failed; it is retried at the next tick")
            await asyncio.sleep(TICK_S)

    async def _watch_nodes(self) -> None:
        """Detects nodes that Ray drains. Replicas on them are replaced."""
        while True:
            try:
                draining = await asyncio.to_thread(draining_nodes)
                for replica in self.replicas:
                    if replica.notice_draining(draining):
                        logs.event(log, logging.WARNING, "eviction", replica=replica.name, reason=replica.eviction)
            except Exception:
                log.exception("cannot read which nodes are being drained; it is retried")
            await asyncio.sleep(LOOK_AT_NODES_S)

    async def _reconcile(self) -> None:
        """Adds and releases replicas, and starts the next actions of each."""
        self._remove_stopped()
        self._autoscale()
        self._change_roster()
        for replica in self.replicas:
            if not self._actions.busy(replica.name):
                self._actions.begin(replica, self._decide(replica))
        await self._table.expect(self._pending)
        await self._record.write()

    def _note_ready(self) -> None:
        self._ever_ready = True

    @property
    def _pending(self) -> int:
        """Number of desired replicas that are not ready yet."""
        serving = sum(replica.phase is Phase.READY for replica in self.replicas)
        return 0 if self._ending else max(0, self._desired - serving)

    def _remove_stopped(self) -> None:
        for name, replica in list(self._replicas.items()):
            gone = replica.goal is not Goal.SERVE and replica.phase in (Phase.ABSENT, Phase.FAILED)
            if gone and not self._actions.busy(name):
                self._generations[name] = replica.generation
                self._former_hosts.extend(replica.hosts)
                del self._replicas[name]

    def _autoscale(self) -> None:
        if self._autoscaler is None or self._ending or not self._ever_ready:
            return
        now = time.monotonic()
        load = Load.total([*(replica.load for replica in self.replicas), self._waiting.total(now)])
        ready = self._desired - self._pending
        decision = self._autoscaler.step(load, desired=self._desired, ready=ready, now=now)
        if decision.reason:
            logs.event(log, logging.INFO, "autoscale", decision=decision.reason, load=load)
            self._desired = decision.scale.desired

    def _machines_needed(self) -> Need:
        used = [host for replica in self.replicas for host in replica.hosts]
        replicas = max(self._desired, len(self._replicas))  # draining replicas still need their machines
        return Need(replicas=replicas, unused_hosts=unused(list(self._former_hosts), used))

    def _change_roster(self) -> None:
        if self._ending:
            for replica in self.replicas:
                replica.goal = Goal.STOP
            return
        members = [
            Member(name=r.name, goal=r.goal, phase=r.phase, load=r.sequences, evicted=bool(r.eviction))
            for r in self.replicas
        ]
        for change in roster.changes(self._desired, members):
            logs.event(log, logging.INFO, "roster change", change=change, wanted=self._desired)
            match change:
                case roster.Add(name):
                    self._replicas[name] = Replica(name, self._spec, self._generations.get(name, 0))
                case roster.Release(name):
                    self._replicas[name].goal = Goal.DRAIN

    def _decide(self, replica: Replica) -> list[Action]:
        return reconcile(
            goal=replica.goal,
            phase=replica.phase,
            problem=replica.problem,
            ranks=replica.observed,
            now=time.monotonic(),
            deadlines=self._spec.deadlines,
            drain=replica.drain_progress,
            retry_at=replica.retry_at if self._ever_ready else None,
        )
