"""A gang of ranks on Ray: one placement group and one actor a rank, created, told to start, probed and destroyed.

The only file that talks placement groups and worker actors. Everything it creates is detached and named under
`outrider:NAME:`, so that what a killed run leaves behind can be found and removed.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util import get_placement_group, placement_group_table
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from outrider.cluster.processes import end_process
from outrider.cluster.topology import Bundle, Node
from outrider.workers.actor import Probe, RankFactory, RankShell
from outrider.workers.errors import OutriderError
from outrider.workers.rank import RankSpec

log = logging.getLogger("outrider.gang")

PLACEMENT_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 6.0
GONE_TIMEOUT_S = 10.0
_CAUSES = (
    ("ray.kill", "it was killed through Ray"),
    ("connection error code 2", "its process was killed or crashed (out of memory, a signal, a native crash)"),
    ("node was terminated", "its node went away"),
)
PROBE_THREADS = 4  # of an actor: a `stop` that waits must not hold up a `probe`


class RankDiedError(Exception):
    """A rank's process is gone; the message says what Ray knows of it."""


def prefix(name: str) -> str:
    """What the names of everything that belongs to a cluster begin with."""
    return f"outrider:{name}:"


class Gang:
    """The ranks of one generation of one replica. Create, start, probe, destroy; from one asyncio loop."""

    def __init__(self, *, cluster: str, replica: str, generation: int) -> None:
        self._name = f"{prefix(cluster)}{replica}:g{generation}"
        self._label = f"{replica} generation {generation}"
        self._group: PlacementGroup | None = None
        self._actors: list[ActorHandle[RankShell]] = []
        self._processes: dict[int, tuple[str, int]] = {}  # by rank, once it answered: node id and pid

    async def create(self, bundles: Sequence[Bundle], factory: RankFactory) -> None:
        """Reserves the nodes and starts the ranks' processes. OutriderError if they do not fit."""
        strategy = "STRICT_PACK" if len(bundles) == 1 else "STRICT_SPREAD"
        wanted = [bundle.resources for bundle in bundles]
        group = self._group = placement_group(wanted, strategy=strategy, name=self._name, lifetime="detached")
        if not await asyncio.to_thread(group.wait, PLACEMENT_TIMEOUT_S):
            raise OutriderError(
                f"no room in the Ray cluster for {wanted} within {PLACEMENT_TIMEOUT_S:.0f} s: "
                f"free are {ray.available_resources()}"
            )
        for index, bundle in enumerate(bundles):
            self._actors += [
                self._start_actor(PlacementGroupSchedulingStrategy(group, index), bundle, rank, factory)
                for rank in bundle.ranks
            ]

    def _start_actor(
        self, place: PlacementGroupSchedulingStrategy, bundle: Bundle, rank: int, factory: RankFactory
    ) -> ActorHandle[RankShell]:
        threads = {"OMP_NUM_THREADS": str(bundle.threads_per_rank), "OMP_WAIT_POLICY": "passive"}
        shell = ray.remote(RankShell).options(
            name=f"{self._name}:rank{rank}",
            lifetime="detached",
            num_cpus=bundle.cores_per_rank,
            num_gpus=bundle.gpus_per_rank,
            max_restarts=0,
            max_concurrency=PROBE_THREADS,
            runtime_env={"env_vars": threads},  # read when torch loads
            scheduling_strategy=place,
        )
        actor = shell.remote(f"rank {rank} of {self._label}", factory)
        assert isinstance(actor, ActorHandle)
        return actor

    async def endpoint(self) -> tuple[str, int]:
        """Where the ranks can meet: rank 0's node, and a port that is free there."""
        address, port = await self._actors[0].endpoint.remote()
        return str(address), int(port)

    async def start(self, specs: Sequence[RankSpec]) -> None:
        await asyncio.gather(*(actor.start.remote(spec) for actor, spec in zip(self._actors, specs, strict=True)))

    async def probe(self, rank: int) -> Probe | None:
        """The rank's answer, for which it waits as long as it takes; None: there is none now, and may be later.

        RankDiedError if there is nobody to give it.
        """
        answer = await ask(self._actors[rank].probe.remote())
        if answer is not None:
            self._processes[rank] = (answer.node_id, answer.pid)
        return answer

    async def destroy(self, *, gently: bool) -> None:
        """Leaves no process, actor or group of this gang. `gently` lets ranks that answer finish their round."""
        if gently:
            await _within(STOP_TIMEOUT_S, asyncio.gather(*(actor.stop.remote() for actor in self._actors)))
        for actor in self._actors:
            ray.kill(actor, no_restart=True)
        # Ray asks a process to end itself, which a frozen one does not hear.
        ends = [asyncio.to_thread(end_process, node_id, pid) for node_id, pid in self._processes.values()]
        await _within(GONE_TIMEOUT_S, asyncio.gather(*ends))
        await _within(GONE_TIMEOUT_S, asyncio.gather(*(self._until_dead(actor) for actor in self._actors)))
        if self._group is not None:
            remove_placement_group(self._group)
        self._actors, self._group, self._processes = [], None, {}

    async def _until_dead(self, actor: ActorHandle[RankShell]) -> None:
        with contextlib.suppress(ray.exceptions.RayActorError):
            while True:
                with contextlib.suppress(ray.exceptions.ActorUnavailableError):
                    await actor.probe.remote()
                await asyncio.sleep(0.05)


async def ask(answer: Awaitable[Probe]) -> Probe | None:
    """What a probe brings: None while the connection to the actor is broken, RankDiedError if the actor is gone."""
    try:
        return await answer
    except ray.exceptions.ActorUnavailableError:
        return None
    except ray.exceptions.RayActorError as error:
        raise RankDiedError(_cause_of_death(error)) from error


async def _within(seconds: float, work: Awaitable[Any]) -> None:
    """Waits for `work`, and goes on without it when it fails or takes longer: what follows is the stronger measure."""
    try:
        await asyncio.wait_for(work, seconds)
    except Exception as error:
        log.debug("went on without: %s: %s", type(error).__name__, error)


def _cause_of_death(error: Exception) -> str:
    """Ray's account of it in a few words."""
    text = " ".join(str(error).split())
    for sign, words in _CAUSES:
        if sign in text:
            return words
    return text.split(" The actor is dead because ")[-1][:200]


def fleet() -> list[Node]:
    """The nodes that are there now."""
    return [
        Node(node_id=row["NodeID"], cores=row["Resources"].get("CPU", 0.0), gpus=row["Resources"].get("GPU", 0.0))
        for row in ray.nodes()
        if row["Alive"]
    ]


def remove_leftovers(name: str) -> list[str]:
    """Removes what a killed run left under `name`: actors (frozen ones too), then groups. Says what it found."""
    actors = sorted(_named_actors(name), key=lambda actor: not actor.endswith(":controller"))
    processes = _processes_of(actors)
    for actor in actors:
        with contextlib.suppress(ValueError):  # gone since we looked
            ray.kill(ray.get_actor(actor), no_restart=True)
    for node_id, pid in processes:
        end_process(node_id, pid)
    groups = [group["name"] for group in placement_group_table().values() if _is_live_group(group, name)]
    for group in groups:
        remove_placement_group(get_placement_group(group))
    return [*actors, *groups]


def _named_actors(name: str) -> list[str]:
    return [actor for actor in ray.util.list_named_actors() if actor.startswith(prefix(name))]


def _processes_of(actors: Sequence[str]) -> list[tuple[str, int]]:
    """Node id and pid of live actors, from Ray's own table: a frozen one cannot be asked."""
    table = ray._private.state.actors().values()
    return [
        (row["Address"]["NodeID"], row["Pid"]) for row in table if row["Name"] in actors and row["State"] == "ALIVE"
    ]


def _is_live_group(group: dict[str, Any], name: str) -> bool:
    return str(group["name"]).startswith(prefix(name)) and group["state"] != "REMOVED"
