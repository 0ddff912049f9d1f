"""Replaces replicas one after the other: a spare is started, an old one drains, and so on.

Pure: a status in, what to do next out. Whoever runs it may stop at any time and start again.
"""

from collections.abc import Collection
from dataclasses import dataclass

from outrider.cluster.api.status import ClusterStatus, ReplicaStatus

Identity = tuple[str, int]  # a replica's name and generation: another generation is of new processes


@dataclass(frozen=True, slots=True)
class ScaleTo:
    """So many replicas are to serve."""

    replicas: int


@dataclass(frozen=True, slots=True)
class DrainOld:
    """A spare serves: this one finishes its requests, and leaves."""

    replica: str


@dataclass(frozen=True, slots=True)
class Wait:
    """For what."""

    reason: str


@dataclass(frozen=True, slots=True)
class Done:
    """No replica is an old one."""


Step = ScaleTo | DrainOld | Wait | Done


def identities(status: ClusterStatus) -> frozenset[Identity]:
    return frozenset(map(_identity, status.replicas))


def next_step(status: ClusterStatus, old: Collection[Identity], wanted: int) -> Step:
    """`old`: what is to go; `wanted`: how many are to serve, before and after.

    At no time do fewer than `wanted` serve, unless one fails.
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
        return Wait(_why(status) or "the spare to be ready")
    return DrainOld(min(one.name for one in staying))


def _identity(replica: ReplicaStatus) -> Identity:
    return replica.name, replica.generation


def _why(status: ClusterStatus) -> str:
    """Why some replica is not ready, if it says so."""
    return next((f"{one.name}: {one.problem}" for one in status.replicas if one.state != "ready" and one.problem), "")
