"""One replica as the controller sees it: its gang, its ranks' latest answers, and how far it has got.

Owns the tasks that bring the gang up and probe its ranks. Decides nothing: reconcile.py does.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import replace

from outrider.cluster.api.load_report import Load
from outrider.cluster.controller.charge import Charge
from outrider.cluster.controller.gang import Gang, RankDiedError
from outrider.cluster.controller.nodes import survey
from outrider.cluster.controller.placement import GangResources, NodeResources, Placement, arrange
from outrider.cluster.controller.reconcile import Goal, Leaving, ObservedRank, Phase, retry_delay_s
from outrider.cluster.controller.record import ReplicaRecord
from outrider.cluster.controller.routes import Route
from outrider.cluster.controller.topology import Node, choose_device
from outrider.workers.loading.rank_spec import RankSpec
from outrider.workers.serving.actor import LOOPBACK, Probe
from outrider.workers.serving.rank_status import RankStatus
from outrider.workers.types.errors import OutriderError

log = logging.getLogger("outrider.controller")
PROBE_EVERY_S = 0.5
LOOK_AGAIN_S = 1.0  # for room
SETTLED_S = 1.0  # after which no gateway still sends requests to a replica that was retired
PROVEN_S = 60.0  # a generation that served so long is not one of a series of failures


class Replica:
    """One generation after another of a gang, and what is known of the latest. One asyncio loop."""

    def __init__(self, name: str, charge: Charge, generation: int = 0) -> None:
        """`generation`: the last that had this name; `start` begins the next."""
        self.name, self.generation = name, generation
        self.plan = charge.plan
        self.goal = Goal.SERVE
        self.phase = Phase.ABSENT
        self.problem = ""
        self.waiting = ""  # for what room
        self.last_ending = ""  # why the generation before this one ended
        self.eviction = ""  # why it cannot stay where it is
        self.device = charge.engine.device  # settled when the gang is placed
        self.failures = 0  # one after another
        self.restarts = 0  # generations that followed a failed one
        self._charge = charge
        self._failed_at = self._ready_at = self._retired_at = 0.0
        self._reset()

    def _reset(self) -> None:
        """A generation of which nothing is known yet."""
        name, generation = self.name, self.generation
        self._gang = Gang(cluster=self._charge.cluster, replica=name, generation=generation)
        self._observed = {rank: ObservedRank(rank=rank, label=self.plan.describe(rank)) for rank in self.ranks}
        self._probes: dict[int, Probe] = {}
        self._node_names: dict[str, str] = {}  # by Ray's id, where there are several
        self._tasks: list[asyncio.Task[None]] = []
        self._started = False  # the ranks have been told what to load
        self._address = ""  # of the leader, once it is ready

    def adopt(self, record: ReplicaRecord) -> None:
        """Goes on with the generation that an earlier controller started; its ranks notice nothing. Blocks for Ray."""
        self.phase, self.device = record.phase, record.device
        self._started, self._address, self._node_names = True, record.address, record.node_names
        self._ready_at = self._retired_at = now = time.monotonic()
        self._gang.adopt(self.ranks)
        if self.phase is not Phase.STARTING:  # then silence is judged as theirs who have answered
            for rank, seen in self._observed.items():
                self._observed[rank] = replace(seen, state="ready", answered_at=now)

    def watch(self) -> None:
        """Asks every rank how it is, from now on."""
        self._tasks += [asyncio.create_task(self._watch(rank)) for rank in self.ranks]

    @property
    def record(self) -> ReplicaRecord:
        """What `adopt` needs."""
        return ReplicaRecord(
            name=self.name,
            generation=self.generation,
            restarts=self.restarts,
            goal=self.goal,
            phase=self.phase,
            started=self._started,
            address=self._address,
            device=self.device,
            node_names=self._node_names,
            last_ending=self.last_ending,
        )

    @property
    def route(self) -> Route:
        """What gateways are told, once it is ready."""
        return Route(replica=self.name, generation=self.generation, address=self._address)

    @property
    def ranks(self) -> range:
        return range(self.plan.world_size)

    @property
    def observed(self) -> Sequence[ObservedRank]:
        return tuple(self._observed.values())

    def probe_of(self, rank: int) -> Probe | None:
        return self._probes.get(rank)

    @property
    def leader(self) -> RankStatus:
        """The leader's latest status; the empty one before its first."""
        probe = self._probes.get(0)
        return probe.status if probe is not None and probe.status is not None else RankStatus()

    @property
    def sequences(self) -> int:
        """That it runs, or that wait in it."""
        return self.leader.counters.running + self.leader.counters.waiting

    @property
    def load(self) -> Load:
        """What it has to do, as far as it is alive."""
        if self.phase not in (Phase.READY, Phase.DRAINING):
            return Load()
        counters = self.leader.counters
        return Load(tokens=counters.tokens, sequences=counters.running, oldest_wait_s=counters.oldest_wait_s)

    @property
    def hosts(self) -> tuple[str, ...]:
        """Of its ranks, in order, each once: in Kubernetes a pod's name."""
        return tuple(dict.fromkeys(probe.host for _, probe in sorted(self._probes.items())))

    def notice_draining(self, nodes: Collection[str]) -> bool:
        """Ray is emptying these nodes: whether that is news for it."""
        ids = {probe.node_id for probe in self._probes.values()} & set(nodes)
        names = sorted(self._node_names.get(one, f"node {one[:12]}") for one in ids)
        before, self.eviction = self.eviction, f"{' and '.join(names)} is being drained" if names else ""
        return self.eviction not in ("", before)

    @property
    def leaving(self) -> Leaving:
        """How far its drain has got."""
        asked_at = self._observed[0].answered_at
        settled = asked_at is not None and asked_at > self._retired_at + SETTLED_S
        overdue = time.monotonic() > self._retired_at + self._charge.drain_grace_s
        return Leaving(idle=settled and self.sequences == 0, overdue=overdue)

    @property
    def retry_at(self) -> float:
        """When the next generation may begin, after one that failed."""
        return self._failed_at + retry_delay_s(self.failures)

    def start(self) -> None:
        """Begins the next generation."""
        self.generation += 1
        self.restarts += self.phase is Phase.FAILED
        self._reset()
        self.phase, self.problem = Phase.STARTING, ""
        self._tasks.append(asyncio.create_task(self._bring_up(), name=f"bring up {self.name}"))

    def ready(self) -> None:
        self.phase, self._ready_at = Phase.READY, time.monotonic()
        self._address = self.leader.service_address

    def retired(self) -> None:
        self.phase, self._retired_at = Phase.DRAINING, time.monotonic()

    def failed(self, reason: str) -> None:
        now = time.monotonic()
        proven = self.phase is Phase.READY and now - self._ready_at > PROVEN_S
        self.failures = 1 if proven else self.failures + 1
        self.phase, self.problem, self.waiting = Phase.FAILED, reason, ""
        self.last_ending, self._failed_at = f"generation {self.generation} ended: {reason}", now

    async def _bring_up(self) -> None:
        """Places the ranks, starts their processes, tells them to start. A failure is the replica's problem."""
        try:
            placement = await self._find_room()
            self._gang.start_ranks(placement.bundles, self._charge.factory)
            self.watch()
            address, port = await self._gang.endpoint()
            await self._gang.start(self._specs(placement, address, port))
            self._started = True
        except (OutriderError, ValueError) as error:
            self.problem = str(error)
        except Exception as error:  # a rank that died meanwhile is the better reason, and soon known
            await asyncio.sleep(2 * PROBE_EVERY_S)
            self.problem = f"the ranks could not be started: {type(error).__name__}: {' '.join(str(error).split())}"

    async def _find_room(self) -> Placement:
        """Waits until Ray has given the nodes. OutriderError if they are too few, and Ray is ours alone."""
        asked: Placement | None = None
        while True:
            rooms = await asyncio.to_thread(survey)
            found = self._arrange(rooms)
            if found.shortage and not self._charge.may_grow:
                raise OutriderError(f"{found.shortage}: lower the parallel sizes, or use another --ray-address")
            self.waiting = found.shortage
            if asked is None or (asked != found and not await self._gang.placed_within(0)):
                asked = found
                await self._gang.ask_for(found)
            if await self._gang.placed_within(LOOK_AGAIN_S):
                self.waiting = ""
                self._node_names = {room.node_id: room.name for room in rooms} if len(rooms) > 1 else {}
                return asked

    def _arrange(self, rooms: Sequence[NodeResources]) -> Placement:
        engine = self._charge.engine
        nodes = [Node(node_id=room.node_id, cores=room.cores, gpus=room.gpus) for room in rooms]
        self.device = choose_device(engine.device, nodes)
        wanted = GangResources(
            world_size=self.plan.world_size,
            device=self.device,
            group_size=engine.tensor_parallel_size,
            ranks_per_node=self._charge.ranks_per_node,
            shares_cores=not self._charge.may_grow,
            replicas=self._charge.replicas,
        )
        return arrange(wanted, rooms)

    def _specs(self, placement: Placement, address: str, port: int) -> list[RankSpec]:
        """Ranks on one node meet on loopback; the leader is called from other nodes, if there are any."""
        engine = replace(self._charge.engine, device=self.device)
        alone, several = len(placement.bundles) == 1, bool(self._node_names)
        return [
            RankSpec(
                engine=engine,
                layer_splits=self.plan.layer_splits,
                rank=rank,
                world_size=self.plan.world_size,
                master_address=LOOPBACK if alone else address,
                master_port=port,
                generation=self.generation,
                restarts=self.restarts,
                replica=self.name,
                service_host=address if several else LOOPBACK,
                service_ports=self._charge.leader_ports,
                service_key=self._charge.key,
                otlp_endpoint=self._charge.otlp_endpoint,
            )
            for rank in self.ranks
        ]

    async def _watch(self, rank: int) -> None:
        """Asks one rank how it is, for as long as it lives."""
        while True:
            sent = time.monotonic()
            self._observed[rank] = self._observed[rank].asked(sent)
            try:
                probe = await self._gang.probe(rank)
                if probe is not None:
                    self._hear(rank, probe, sent)
            except RankDiedError as error:
                self._observed[rank] = replace(self._observed[rank], death=str(error), waiting_since=None)
                return
            except Exception as error:  # a rank that is not watched must not go on
                label = self._observed[rank].label
                log.exception("%s cannot be watched", label)
                self.problem = f"{label} cannot be watched: {type(error).__name__}: {_last_line(error)}"
                return
            await asyncio.sleep(PROBE_EVERY_S)

    def _hear(self, rank: int, probe: Probe, sent: float) -> None:
        self._probes[rank] = probe
        status = probe.status
        failed = status is not None and status.state == "failed"
        first_failed = self._observed[rank].failed_at or time.monotonic()
        self._observed[rank] = replace(
            self._observed[rank],
            label=self._label(rank, probe),
            state=status.state if status is not None else "starting",
            error=status.error if status is not None else "",
            stall=status.stall if status is not None else "",
            computing_s=status.computing_s if status is not None else 0.0,
            failed_at=first_failed if failed else None,
            answered_at=sent,
            waiting_since=None,
        )

    def _label(self, rank: int, probe: Probe) -> str:
        """A rank's name in errors, with its node where there are several."""
        node = self._node_names.get(probe.node_id)
        return self.plan.describe(rank, probe.pid) + (f" on {node}" if node else "")

    def forgive(self, now: float) -> None:
        """Silence so far does not count: the observer itself was held up."""
        for rank, seen in self._observed.items():
            if seen.waiting_since is not None:
                self._observed[rank] = replace(seen, waiting_since=now)

    async def destroy(self, *, gently: bool) -> None:
        """Leaves no process, actor or group of this generation."""
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self._gang.destroy(gently=gently)


def _last_line(error: Exception) -> str:
    """The message itself, where Ray has put another process's traceback before it."""
    return (str(error).strip().splitlines() or [""])[-1]
