"""One replica as the controller sees it: its gang, its ranks' latest answers, and how far it has got.

Owns the tasks that bring the gang up and probe its ranks. Decides nothing: reconcile.py does.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from outrider.cluster.gang import Gang, RankDiedError, fleet
from outrider.cluster.plan import ShardPlan
from outrider.cluster.reconcile import Deadlines, ObservedRank, Phase
from outrider.cluster.topology import choose_device, place
from outrider.workers.actor import Probe, RankFactory
from outrider.workers.config import EngineConfig
from outrider.workers.errors import OutriderError
from outrider.workers.rank import Rank, RankSpec, RankStatus

log = logging.getLogger("outrider.controller")
PROBE_EVERY_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What a controller is told to keep running; the same for each generation of a replica."""

    cluster: str
    model_name: str
    model_path: str
    engine: EngineConfig
    plan: ShardPlan
    key: str = field(default="", repr=False)  # the cluster's, see workers/cluster_key.py
    controller_host: str = ""  # "": loopback, or its node's address with more nodes
    controller_port: int = 0  # 0: a free one
    leader_ports: tuple[int, int] = (0, 0)  # first and last; 0: any
    factory: RankFactory = Rank
    deadlines: Deadlines = field(default_factory=Deadlines)


class Replica:
    """A gang and what is known of it. One asyncio loop."""

    def __init__(self, name: str, charge: Charge, generation: int = 1) -> None:
        self.name, self.generation = name, generation
        self.plan = charge.plan
        self.device = charge.engine.device  # settled when the gang is placed
        self.phase = Phase.ABSENT
        self.problem = ""
        self._charge = charge
        self._gang = Gang(cluster=charge.cluster, replica=name, generation=generation)
        self._observed = {rank: ObservedRank(rank=rank, label=self.plan.describe(rank)) for rank in self.ranks}
        self._probes: dict[int, Probe] = {}
        self._tasks: list[asyncio.Task[None]] = []

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

    def start(self) -> None:
        self.phase = Phase.STARTING
        self._tasks.append(asyncio.create_task(self._bring_up(), name=f"bring up {self.name}"))

    async def _bring_up(self) -> None:
        """Places the ranks, starts their processes, tells them to start. A failure is the replica's problem."""
        try:
            nodes = fleet()
            self.device = choose_device(self._charge.engine.device, nodes)
            await self._gang.create(place(self.plan.world_size, nodes, self.device), self._charge.factory)
            self._tasks += [asyncio.create_task(self._watch(rank)) for rank in self.ranks]
            address, port = await self._gang.endpoint()
            await self._gang.start(self._specs("127.0.0.1" if len(nodes) == 1 else address, port))
        except (OutriderError, ValueError) as error:
            self.problem = str(error)
        except Exception as error:  # a rank that died meanwhile is the better reason, and soon known
            await asyncio.sleep(2 * PROBE_EVERY_S)
            self.problem = f"the ranks could not be started: {type(error).__name__}: {' '.join(str(error).split())}"

    def _specs(self, address: str, port: int) -> list[RankSpec]:
        engine = replace(self._charge.engine, device=self.device)
        return [
            RankSpec(
                engine=engine,
                layer_splits=self.plan.layer_splits,
                rank=rank,
                world_size=self.plan.world_size,
                master_address=address,
                master_port=port,
                generation=self.generation,
                replica=self.name,
                service_host=address,
                service_ports=self._charge.leader_ports,
                service_key=self._charge.key,
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
            except Exception as error:  # a rank that nobody watches must not go on
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
            label=self.plan.describe(rank, probe.pid),
            state=status.state if status is not None else "starting",
            error=status.error if status is not None else "",
            failed_at=first_failed if failed else None,
            answered_at=sent,
            waiting_since=None,
        )

    def forgive(self, now: float) -> None:
        """Silence so far does not count: the observer itself was held up."""
        for rank, seen in self._observed.items():
            if seen.waiting_since is not None:
                self._observed[rank] = replace(seen, waiting_since=now)

    async def destroy(self, *, gently: bool) -> None:
        """Leaves no process, actor or group of this replica."""
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self._gang.destroy(gently=gently)


def _last_line(error: Exception) -> str:
    """The message itself, where Ray has put another process's traceback before it."""
    return (str(error).strip().splitlines() or [""])[-1]
