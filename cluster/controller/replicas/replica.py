"""The controller's view of one replica: its gang, its phase, and the latest probe of each rank.

Owns the tasks that start the gang and probe its ranks. Decisions are made in reconcile.py.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import replace

from outrider.cluster.api.load_report import Load
from outrider.cluster.controller.cluster_spec import ClusterSpec
from outrider.cluster.controller.gangs.gang import Gang, RankDiedError
from outrider.cluster.controller.gangs.nodes import survey
from outrider.cluster.controller.gangs.placement import GangResources, NodeResources, Placement, arrange
from outrider.cluster.controller.gangs.topology import Node, choose_device
from outrider.cluster.controller.reconcile import DrainProgress, Goal, ObservedRank, Phase, retry_delay_s
from outrider.cluster.controller.record import ReplicaRecord
from outrider.cluster.controller.routes import Route
from outrider.workers.loading.rank_spec import RankSpec
from outrider.workers.serving.actor import LOOPBACK, Probe
from outrider.workers.serving.rank_status import RankStatus
from outrider.workers.types.errors import OutriderError

log = logging.getLogger("outrider.controller")
PROBE_EVERY_S = 0.5
LOOK_AGAIN_S = 1.0  # interval of attempts to place the gang
SETTLED_S = 1.0  # after a replica was retired, until no gateway sends requests to it any more
PROVEN_S = 60.0  # a generation that was ready for this long resets the count of consecutive failures


class Replica:
    """A replica, through all generations of its gang. One asyncio loop."""

    def __init__(self, name: str, spec: ClusterSpec, generation: int = 0) -> None:
        """`generation`: the last one with this name; `start` creates the next."""
        self.name, self.generation = name, generation
        self.plan = spec.plan
        self.goal = Goal.SERVE
        self.phase = Phase.ABSENT
        self.problem = ""
        self.waiting = ""  # the resources it waits for
        self.last_ending = ""  # why the previous generation ended
        self.eviction = ""  # why it must leave its nodes
        self.device = spec.engine.device  # "auto" is resolved when the gang is placed
        self.failures = 0  # consecutive
        self.restarts = 0  # generations that followed a failed one
        self._spec = spec
        self._failed_at = self._ready_at = self._retired_at = 0.0
        self._reset()

    def _reset(self) -> None:
        """Resets the state for a new generation."""
        name, generation = self.name, self.generation
        self._gang = Gang(cluster=self._spec.cluster, replica=name, generation=generation)
        self._observed = {rank: ObservedRank(rank=rank, label=self.plan.describe(rank)) for rank in self.ranks}
        self._probes: dict[int, Probe] = {}
        self._node_names: dict[str, str] = {}  # by Ray's node id, if there are several nodes
        self._tasks: list[asyncio.Task[None]] = []
        self._started = False  # the ranks have their RankSpecs
        self._address = ""  # of the leader, once it is ready

    def adopt(self, record: ReplicaRecord) -> None:
        """Takes over the generation that a previous controller started. Its ranks keep running. Blocks on Ray calls."""
        self.phase, self.device = record.phase, record.device
        self._started, self._address, self._node_names = True, record.address, record.node_names
        self._ready_at = self._retired_at = now = time.monotonic()
        self._gang.adopt(self.ranks)
        if self.phase is not Phase.STARTING:  # its ranks have answered before, so the deadline of ready ranks applies
            for rank, seen in self._observed.items():
                self._observed[rank] = replace(seen, state="ready", answered_at=now)

    def watch(self) -> None:
        """Starts to probe every rank."""
        self._tasks += [asyncio.create_task(self._watch(rank)) for rank in self.ranks]

    @property
    def record(self) -> ReplicaRecord:
        """The record that `adopt` takes."""
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
        """Its entry in the routing table. Valid once it is ready."""
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
        """The leader's latest status; an empty one before its first answer."""
        probe = self._probes.get(0)
        return probe.status if probe is not None and probe.status is not None else RankStatus()

    @property
    def sequences(self) -> int:
        """Number of its running and waiting sequences."""
        return self.leader.counters.running + self.leader.counters.waiting

    @property
    def load(self) -> Load:
        """Its unfinished work; empty unless it is ready or draining."""
        if self.phase not in (Phase.READY, Phase.DRAINING):
            return Load()
        counters = self.leader.counters
        return Load(tokens=counters.tokens, sequences=counters.running, oldest_wait_s=counters.oldest_wait_s)

    @property
    def hosts(self) -> tuple[str, ...]:
        """Hosts of its ranks in order, without duplicates. In Kubernetes a host is a pod's name."""
        return tuple(dict.fromkeys(probe.host for _, probe in sorted(self._probes.items())))

    def notice_draining(self, nodes: Collection[str]) -> bool:
        """Takes the nodes that Ray drains. Whether a new one is among this replica's nodes."""
        ids = {probe.node_id for probe in self._probes.values()} & set(nodes)
        names = sorted(self._node_names.get(one, f"node {one[:12]}") for one in ids)
        before, self.eviction = self.eviction, f"{' and '.join(names)} is being drained" if names else ""
        return self.eviction not in ("", before)

    @property
    def drain_progress(self) -> DrainProgress:
        """Progress of its drain."""
        probed_at = self._observed[0].answered_at
        settled = probed_at is not None and probed_at > self._retired_at + SETTLED_S
        overdue = time.monotonic() > self._retired_at + self._spec.drain_grace_s
        return DrainProgress(idle=settled and self.sequences == 0, overdue=overdue)

    @property
    def retry_at(self) -> float:
        """When the next generation may start after a failure."""
        return self._failed_at + retry_delay_s(self.failures)

    def start(self) -> None:
        """Starts the next generation."""
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
        """Places the gang, starts its processes, and starts loading. A failure is stored as `problem`."""
        try:
            placement = await self._place_gang()
            self._gang.start_ranks(placement.bundles, self._spec.factory)
            self.watch()
            address, port = await self._gang.endpoint()
            await self._gang.start(self._specs(placement, address, port))
            self._started = True
        except (OutriderError, ValueError) as error:
            self.problem = str(error)
        except Exception as error:  # if a rank died, a probe soon reports the better reason
            await asyncio.sleep(2 * PROBE_EVERY_S)
            self.problem = f"the ranks could not be started: {type(error).__name__}: {' '.join(str(error).split())}"

    async def _place_gang(self) -> Placement:
        """Waits until Ray has placed the gang. Raises OutriderError if the Ray cluster is too small and not shared."""
        requested: Placement | None = None
        while True:
            fleet = await asyncio.to_thread(survey)
            found = self._arrange(fleet)
            if found.shortage and not self._spec.may_grow:
                raise OutriderError(f"{found.shortage}: lower the parallel sizes, or use another --ray-address")
            self.waiting = found.shortage
            if requested is None or (requested != found and not await self._gang.placed_within(0)):
                requested = found
                await self._gang.request_nodes(found)
            if await self._gang.placed_within(LOOK_AGAIN_S):
                self.waiting = ""
                self._node_names = {node.node_id: node.name for node in fleet} if len(fleet) > 1 else {}
                return requested

    def _arrange(self, fleet: Sequence[NodeResources]) -> Placement:
        engine = self._spec.engine
        nodes = [Node(node_id=node.node_id, cores=node.cores, gpus=node.gpus) for node in fleet]
        self.device = choose_device(engine.device, nodes)
        wanted = GangResources(
            world_size=self.plan.world_size,
            device=self.device,
            group_size=engine.tensor_parallel_size,
            ranks_per_node=self._spec.ranks_per_node,
            shares_cores=not self._spec.may_grow,
            replicas=self._spec.replicas,
        )
        return arrange(wanted, fleet)

    def _specs(self, placement: Placement, address: str, port: int) -> list[RankSpec]:
        """Ranks on a single node use loopback. The leader listens on the node's address if there are several nodes."""
        engine = replace(self._spec.engine, device=self.device)
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
                service_ports=self._spec.leader_ports,
                service_key=self._spec.key,
                otlp_endpoint=self._spec.otlp_endpoint,
            )
            for rank in self.ranks
        ]

    async def _watch(self, rank: int) -> None:
        """Probes one rank until it ends."""
        while True:
            sent = time.monotonic()
            self._observed[rank] = self._observed[rank].probed(sent)
            try:
                probe = await self._gang.probe(rank)
                if probe is not None:
                    self._note_probe(rank, probe, sent)
            except RankDiedError as error:
                self._observed[rank] = replace(self._observed[rank], death=str(error), waiting_since=None)
                return
            except Exception as error:  # the replica must not continue with a rank that is not probed
                label = self._observed[rank].label
                log.exception("%s cannot be probed", label)
                self.problem = f"{label} cannot be probed: {type(error).__name__}: {_last_line(error)}"
                return
            await asyncio.sleep(PROBE_EVERY_S)

    def _note_probe(self, rank: int, probe: Probe, sent: float) -> None:
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
        """A rank's name in errors, with its node if there are several nodes."""
        node = self._node_names.get(probe.node_id)
        return self.plan.describe(rank, probe.pid) + (f" on {node}" if node else "")

    def reset_silence(self, now: float) -> None:
        """Restarts the deadlines of unanswered probes, because the controller itself was blocked."""
        for rank, seen in self._observed.items():
            if seen.waiting_since is not None:
                self._observed[rank] = replace(seen, waiting_since=now)

    async def destroy(self, *, gently: bool) -> None:
        """Removes every process, actor and group of this generation."""
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self._gang.destroy(gently=gently)


def _last_line(error: Exception) -> str:
    """The message itself, without the remote traceback that Ray puts before it."""
    return (str(error).strip().splitlines() or [""])[-1]
