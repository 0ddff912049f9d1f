"""A gang of ranks on Ray: one placement group, and one actor per rank.

Actors and group are detached and named (names.py), so that after a crash they can be adopted, or found and removed.
"""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Awaitable, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util import get_placement_group
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from outrider.cluster.controller.gangs.nodes import DOMAIN_LABEL
from outrider.cluster.controller.gangs.placement import Placement
from outrider.cluster.controller.gangs.processes import end_processes, live_groups, processes_of
from outrider.cluster.controller.gangs.topology import Bundle
from outrider.cluster.controller.names import gang_prefix
from outrider.workers.loading.rank_spec import RankSpec
from outrider.workers.serving.actor import Probe, RankFactory, RankShell

log = logging.getLogger("outrider.gang")

STOP_TIMEOUT_S = 6.0
GONE_TIMEOUT_S = 10.0
_CAUSES = (
    ("ray.kill", "it was killed through Ray"),
    ("connection error code 2", "its process was killed or crashed (out of memory, a signal, a native crash)"),
    ("node was terminated", "its node was lost"),
)
PROBE_THREADS = 4  # threads per actor: a `stop` that waits must not block a `probe`


class RankDiedError(Exception):
    """A rank's process has ended; the message is Ray's reason."""


class Gang:
    """The ranks of one generation of a replica: created or adopted, probed, and destroyed, in one asyncio loop."""

    def __init__(self, *, cluster: str, replica: str, generation: int) -> None:
        self._prefix = gang_prefix(cluster, replica, generation)
        self._label = f"{replica} generation {generation}"
        self._asked = itertools.count(1)
        self._group: PlacementGroup | None = None
        self._actors: dict[int, ActorHandle[RankShell]] = {}  # by rank
        self._processes: dict[int, tuple[str, int]] = {}  # by rank: node id and pid, from its last answer

    async def request_nodes(self, placement: Placement) -> None:
        """Creates the placement group, in place of an earlier one. Ray may place it immediately, later or never."""
        self._give_back()
        strategy = "STRICT_PACK" if len(placement.bundles) == 1 else "STRICT_SPREAD"
        within = [{DOMAIN_LABEL: placement.domain}] * len(placement.bundles) if placement.domain else None
        self._group = placement_group(
            [bundle.resources for bundle in placement.bundles],
            strategy=strategy,
            name=f"{self._prefix}{next(self._asked)}",
            lifetime="detached",
            bundle_label_selector=within,
        )

    async def placed_within(self, seconds: float) -> bool:
        """Waits for the placement group. Returns whether Ray placed it in time."""
        return self._group is not None and await asyncio.to_thread(self._group.wait, seconds)

    def start_ranks(self, bundles: Sequence[Bundle], factory: RankFactory) -> None:
        """Starts the ranks' processes in the placement group."""
        assert self._group is not None, "request_nodes comes first"
        for index, bundle in enumerate(bundles):
            place = PlacementGroupSchedulingStrategy(self._group, index)
            self._actors |= {rank: self._start_actor(place, bundle, rank, factory) for rank in bundle.ranks}

    def adopt(self, ranks: Sequence[int]) -> None:
        """Takes over the actors and group that a previous controller created. Ranks without an actor count as died."""
        names = {self._rank_name(rank): rank for rank in ranks}
        for name, rank in names.items():
            with contextlib.suppress(ValueError):
                self._actors[rank] = ray.get_actor(name)
        self._processes = {names[name]: process for name, process in processes_of(names).items()}
        self._group = next((get_placement_group(name) for name in live_groups(self._prefix)), None)

    def _rank_name(self, rank: int) -> str:
        return f"{self._prefix}rank{rank}"

    def _start_actor(
        self, place: PlacementGroupSchedulingStrategy, bundle: Bundle, rank: int, factory: RankFactory
    ) -> ActorHandle[RankShell]:
        threads = {"OMP_NUM_THREADS": str(bundle.threads_per_rank), "OMP_WAIT_POLICY": "passive"}
        shell = ray.remote(RankShell).options(
            name=self._rank_name(rank),
            lifetime="detached",
            num_cpus=bundle.cores_per_rank,
            num_gpus=bundle.gpus_per_rank,
            max_restarts=0,
            max_concurrency=PROBE_THREADS,
            runtime_env={"env_vars": threads},  # torch reads these when it is imported
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
        """Address for the ranks' rendezvous: rank 0's node and a free port on it."""
        address, port = await self._actors[0].endpoint.remote()
        return str(address), int(port)

    async def start(self, specs: Sequence[RankSpec]) -> None:
        await asyncio.gather(*(self._actors[spec.rank].start.remote(spec) for spec in specs))

    async def probe(self, rank: int) -> Probe | None:
        """The rank's answer, without a timeout; None if the connection is broken for now.

        Raises RankDiedError if the rank's actor has ended.
        """
        if rank not in self._actors:
            raise RankDiedError("it ended while no controller was running")
        answer = await probe_result(self._actors[rank].probe.remote())
        if answer is not None:
            self._processes[rank] = (answer.node_id, answer.pid)
        return answer

    async def destroy(self, *, gently: bool) -> None:
        """Removes every process, actor and group of this gang. `gently`: ranks that answer may finish their round."""
        actors = list(self._actors.values())
        if gently:
            await _within(STOP_TIMEOUT_S, asyncio.gather(*(actor.stop.remote() for actor in actors)))
        for actor in actors:
            ray.kill(actor, no_restart=True)
        # Ray asks a process to end itself, which a frozen process does not do.
        await _within(GONE_TIMEOUT_S, asyncio.to_thread(end_processes, list(self._processes.values())))
        await _within(GONE_TIMEOUT_S, asyncio.gather(*(self._until_dead(actor) for actor in actors)))
        self._give_back()
        self._actors, self._processes = {}, {}

    async def _until_dead(self, actor: ActorHandle[RankShell]) -> None:
        with contextlib.suppress(ray.exceptions.RayActorError):
            while True:
                with contextlib.suppress(ray.exceptions.ActorUnavailableError):
                    await actor.probe.remote()
                await asyncio.sleep(0.05)


async def probe_result(answer: Awaitable[Probe]) -> Probe | None:
    """The probe, or None while the connection to the actor is broken. Raises RankDiedError if the actor has ended."""
    try:
        return await answer
    except ray.exceptions.ActorUnavailableError:
        return None
    except ray.exceptions.RayActorError as error:
        raise RankDiedError(_cause_of_death(error)) from error


async def _within(seconds: float, work: Awaitable[Any]) -> None:
    """Waits for `work`. Ignores a failure or timeout: the caller continues in any case, e.g. with ray.kill."""
    try:
        await asyncio.wait_for(work, seconds)
    except Exception as error:
        log.debug("ignored: %s: %s", type(error).__name__, error)


def _cause_of_death(error: Exception) -> str:
    """A short form of Ray's reason."""
    text = " ".join(str(error).split())
    for sign, words in _CAUSES:
        if sign in text:
            return words
    return text.split(" The actor is dead because ")[-1][:200]
