"""The state that a restarted controller cannot get from its ranks. Stored in Ray's internal key-value store."""

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
    """The stored state of one replica. The state of its ranks is not stored: probes return it."""

    name: str
    generation: int
    restarts: int
    goal: Goal
    phase: Phase
    started: bool  # its ranks exist and have their RankSpecs
    address: str  # of its leader, once it was published to gateways
    device: str
    node_names: dict[str, str]  # by Ray's node id
    last_ending: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterRecord:
    """The stored state of a cluster."""

    identity: str  # ClusterSpec.identity: only a controller with the same identity can adopt these ranks
    address: str  # HOST:PORT of the controller
    configured: int  # the setting `replicas`
    desired: int  # current desired number of replicas
    ever_ready: bool
    ending: bool
    replicas: tuple[ReplicaRecord, ...]
    generations: dict[str, int]  # last generation of replica names that are not in use
    former_hosts: tuple[str, ...]

    @property
    def survivors(self) -> tuple[ReplicaRecord, ...]:
        """The replicas whose ranks may still run."""
        alive = (Phase.STARTING, Phase.READY, Phase.DRAINING)
        return tuple(one for one in self.replicas if one.started and one.phase in alive)

    def names_to_keep(self, cluster: str) -> tuple[str, ...]:
        """Prefixes of the names of the survivors' actors and groups."""
        return tuple(gang_prefix(cluster, one.name, one.generation) for one in self.survivors)


_ADAPTER = TypeAdapter(ClusterRecord)


class RecordWriter:
    """Stores a cluster's record when it has changed. One asyncio loop."""

    def __init__(self, cluster: str, current: Callable[[], ClusterRecord]) -> None:
        self._cluster, self._current = cluster, current
        self._written: ClusterRecord | None = None
        self._writing = asyncio.Lock()

    async def write(self) -> None:
        """Returns when the current record is stored."""
        async with self._writing:
            record = self._current()
            if record != self._written:
                await asyncio.to_thread(save, self._cluster, record)
                self._written = record


def save(cluster: str, record: ClusterRecord) -> None:
    _internal_kv_put(_key(cluster), _ADAPTER.dump_json(record), overwrite=True, namespace=_NAMESPACE)


def load(cluster: str) -> ClusterRecord | None:
    """The stored record; None if there is none, or if another version of outrider wrote it."""
    text = _internal_kv_get(_key(cluster), namespace=_NAMESPACE)
    try:
        return _ADAPTER.validate_json(text) if text else None
    except ValueError:
        return None


def forget(cluster: str) -> None:
    _internal_kv_del(_key(cluster), namespace=_NAMESPACE)


def _key(cluster: str) -> bytes:
    return f"{prefix(cluster)}record".encode()
