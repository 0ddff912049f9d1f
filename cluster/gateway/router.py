"""Chooses a replica. Pure: the controller's table and what is live where, in; decisions, out."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, order=True)
class ReplicaId:
    """One generation of one replica: what a request runs on."""

    name: str
    generation: int

    def __str__(self) -> str:
        return f"{self.name} (generation {self.generation})"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingTable:
    """What the controller says: who takes requests, and who ended and why."""

    routes: Mapping[ReplicaId, str] = field(default_factory=dict)  # HOST:PORT of each leader
    ended: Mapping[ReplicaId, str] = field(default_factory=dict)
    draining: bool = False
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What makes a gateway's connections match a table."""

    connect: Mapping[ReplicaId, str]
    end: Mapping[ReplicaId, str]  # with the reason: their requests fail now
    retire: frozenset[ReplicaId]  # take no more requests, and finish those they have


def changes(connected: Collection[ReplicaId], table: RoutingTable) -> Changes:
    """A generation that ended never comes back, whatever else the table says of it."""
    known = set(connected)
    return Changes(
        connect={one: at for one, at in table.routes.items() if one not in known and one not in table.ended},
        end={one: reason for one, reason in table.ended.items() if one in known},
        retire=frozenset(known - set(table.routes) - set(table.ended)),
    )


def choose(live: Mapping[ReplicaId, int], ready: Iterable[ReplicaId]) -> ReplicaId | None:
    """The ready replica with the fewest live requests; of equals, the first by name."""
    return min(ready, key=lambda one: (live.get(one, 0), one), default=None)
