"""What a controller must know again after a crash, and its ranks cannot tell it. Kept in Ray's own store."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import TypeAdapter
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

from outrider.cluster.controller.names import gang_prefix, prefix
from outrider.cluster.controller.reconcile import Goal, Phase

_NAMESPACE = b"outrider"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaRecord:
    """One replica. What its ranks do now, they say themselves."""

    name: str
    generation: int
    restarts: int
    goal: Goal
    phase: Phase
    started: bool  # its ranks exist, and have been told what to load
    address: str  # of its leader, once gateways have been told
    device: str
    node_names: dict[str, str]  # by Ray's id
    last_ending: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterRecord:
    """A whole cluster."""

    identity: str  # Charge.identity: who has another cannot go on with these ranks
    address: str  # HOST:PORT of the controller
    asked: int  # replicas when it was started
    desired: int  # replicas by now
    ever_ready: bool
    ending: bool
    replicas: tuple[ReplicaRecord, ...]
    generations: dict[str, int]  # of names that are not in use, the last
    former_hosts: tuple[str, ...]

    @property
    def survivors(self) -> tuple[ReplicaRecord, ...]:
        """Those whose ranks may have outlived their controller."""
        alive = (Phase.STARTING, Phase.READY, Phase.DRAINING)
        return tuple(one for one in self.replicas if one.started and one.phase in alive)

    def names_to_keep(self, cluster: str) -> tuple[str, ...]:
        """What the names of the survivors' actors and groups begin with."""
        return tuple(gang_prefix(cluster, one.name, one.generation) for one in self.survivors)


_ADAPTER = TypeAdapter(ClusterRecord)


class RecordKeeper:
    """Writes a cluster's record down, whenever it has changed. One asyncio loop."""

    def __init__(self, cluster: str, current: Callable[[], ClusterRecord]) -> None:
        self._cluster, self._current = cluster, current
        self._written: ClusterRecord | None = None
        self._writing = asyncio.Lock()

    async def write(self) -> None:
        """Returns when what is current now is safe."""
        async with self._writing:
            record = self._current()
            if record != self._written:
                await asyncio.to_thread(save, self._cluster, record)
                self._written = record


def save(cluster: str, record: ClusterRecord) -> None:
    _internal_kv_put(_key(cluster), _ADAPTER.dump_json(record), overwrite=True, namespace=_NAMESPACE)


def load(cluster: str) -> ClusterRecord | None:
    """The latest; None if there is none, or another version of outrider wrote it."""
    text = _internal_kv_get(_key(cluster), namespace=_NAMESPACE)
    try:
        return _ADAPTER.validate_json(text) if text else None
    except ValueError:
        return None


def forget(cluster: str) -> None:
    _internal_kv_del(_key(cluster), namespace=_NAMESPACE)


def _key(cluster: str) -> bytes:
    return f"{prefix(cluster)}record".encode()
