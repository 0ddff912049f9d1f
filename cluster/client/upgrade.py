"""Rolling upgrade: starts an additional replica, drains an old one, and repeats until all are new.

Pure: takes a status, returns the next step. The state is in the cluster, so an interrupted upgrade can be continued.
"""

from collections.abc import Collection
from dataclasses import dataclass

from outrider.cluster.api.status import ClusterStatus, ReplicaStatus

Identity = tuple[str, int]  # a replica's name and generation; another generation has new processes


@dataclass(frozen=True, slots=True)
class ScaleTo:
    """Set the desired number of replicas."""

    replicas: int


@dataclass(frozen=True, slots=True)
class DrainOld:
    """Drain this old replica, since the additional one is ready."""

    replica: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait. `reason`: what for."""

    reason: str


@dataclass(frozen=True, slots=True)
class Done:
    """No old replica is left."""


Step = ScaleTo | DrainOld | Wait | Done


def identities(status: ClusterStatus) -> frozenset[Identity]:
    return frozenset(map(_identity, status.replicas))


def next_step(status: ClusterStatus, old: Collection[Identity], wanted: int) -> Step:
    """`old`: the replicas to replace. `wanted`: the number of replicas before and after.

    At least `wanted` replicas are ready at any time, unless one fails.
    """
    left = [replica for replica in status.replicas if _identity(replica) in old]
    staying = [replica for replica in left if replica.state != "draining"]
    ready = [replica for replica in status.replicas if replica.state == "ready"]
    if not staying:
        if status.desired_replicas != wanted:
            return ScaleTo(wanted)
        return Wait(f"{', '.join(one.name for one in left)} to finish its requests") if left else Done()
    if status.desired_replicas <= wanted:
        return ScaleTo(wanted + 1)
    if len(ready) <= wanted:
        return Wait(_why(status) or "the additional replica to be ready")
    return DrainOld(min(one.name for one in staying))


def _identity(replica: ReplicaStatus) -> Identity:
    return replica.name, replica.generation


def _why(status: ClusterStatus) -> str:
    """The problem of a replica that is not ready, if one is known."""
    return next((f"{one.name}: {one.problem}" for one in status.replicas if one.state != "ready" and one.problem), "")
