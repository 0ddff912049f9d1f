"""A gang of ranks on Ray: one placement group and one actor a rank, created, told to start, probed and destroyed.

The only file that talks placement groups and worker actors. Everything it creates is detached and named under
`outrider:NAME:`, so that what a killed run leaves behind can be found and removed.
"""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Awaitable, Collection, Mapping, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util import get_placement_group, placement_group_table
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from outrider.cluster.placement import Placement, Room
from outrider.cluster.processes import end_process
from outrider.cluster.topology import Bundle
from outrider.workers.actor import Probe, RankFactory, RankShell
from outrider.workers.rank import RankSpec

log = logging.getLogger("outrider.gang")

DOMAIN_LABEL = "ray.io/gpu-domain"  # of a node: where its GPUs have a fast link
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
        self._asked = itertools.count(1)
        self._group: PlacementGroup | None = None
        self._actors: list[ActorHandle[RankShell]] = []
        self._processes: dict[int, tuple[str, int]] = {}  # by rank, once it answered: node id and pid

    async def ask_for(self, placement: Placement) -> None:
        """Asks Ray for the nodes, in the place of what was asked for before. They may come at once, later or never."""
        self._give_back()
        strategy = "STRICT_PACK" if len(placement.bundles) == 1 else "STRICT_SPREAD"
        within = [{DOMAIN_LABEL: placement.domain}] * len(placement.bundles) if placement.domain else None
        self._group = placement_group(
            [bundle.resources for bundle in placement.bundles],
            strategy=strategy,
            name=f"{self._name}:{next(self._asked)}",
            lifetime="detached",
            bundle_label_selector=within,
        )

    async def placed_within(self, seconds: float) -> bool:
        """Whether the nodes are ours by then."""
        return self._group is not None and await asyncio.to_thread(self._group.wait, seconds)

    def start_ranks(self, bundles: Sequence[Bundle], factory: RankFactory) -> None:
        """Starts the ranks' processes on the nodes that were asked for."""
        assert self._group is not None, "ask_for comes first"
        for index, bundle in enumerate(bundles):
            self._actors += [
                self._start_actor(PlacementGroupSchedulingStrategy(self._group, index), bundle, rank, factory)
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

    def _give_back(self) -> None:
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None

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
        self._give_back()
        self._actors, self._processes = [], {}

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


def survey() -> list[Room]:
    """The nodes that take work now: those that are being drained do not."""
    free = ray._private.state.available_resources_per_node()
    leaving = _draining_nodes()
    return [_room(row, free.get(row["NodeID"], {})) for row in ray.nodes() if _takes_work(row, leaving)]


def _room(row: Mapping[str, Any], free: Mapping[str, float]) -> Room:
    has = row["Resources"]
    return Room(
        node_id=row["NodeID"],
        name=f"node {row['NodeManagerAddress']} (id {row['NodeID'][:12]})",
        cores=has.get("CPU", 0.0),
        gpus=has.get("GPU", 0.0),
        free_cores=free.get("CPU", 0.0),
        free_gpus=free.get("GPU", 0.0),
        domain=row.get("Labels", {}).get(DOMAIN_LABEL, ""),
    )


def _takes_work(row: Mapping[str, Any], leaving: Collection[str]) -> bool:
    return row["Alive"] and row["NodeID"] not in leaving


def _draining_nodes() -> Collection[str]:
    """Ids of nodes that Ray has been told to empty; none where this version of Ray cannot say."""
    try:
        return set(ray._private.state.state.get_draining_nodes())
    except AttributeError:
        return ()


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
