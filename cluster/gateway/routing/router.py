"""Chooses replicas for requests. Pure: takes the routing table, and each replica's load and cached prompt tokens."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, order=True)
class ReplicaId:
    """One generation of one replica."""

    name: str
    generation: int

    def __str__(self) -> str:
        return f"{self.name} (generation {self.generation})"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingTable:
    """The controller's table: replicas that accept requests, ended replicas with the reason, pending replicas."""

    routes: Mapping[ReplicaId, str] = field(default_factory=dict)  # HOST:PORT of each leader
    ended: Mapping[ReplicaId, str] = field(default_factory=dict)
    draining: bool = False
    version: int = 0
    pending: int = 0  # replicas that are being started, or will be started


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """The changes that make a gateway's connections match a table."""

    connect: Mapping[ReplicaId, str]
    end: Mapping[ReplicaId, str]  # with the reason; their requests must move
    retire: frozenset[ReplicaId]  # accept no new requests, and finish running ones


def changes(connected: Collection[ReplicaId], table: RoutingTable) -> Changes:
    """A generation that has ended is never connected again, even if the table lists it."""
    known = set(connected)
    return Changes(
        connect={one: at for one, at in table.routes.items() if one not in known and one not in table.ended},
        end={one: reason for one, reason in table.ended.items() if one in known},
        retire=frozenset(known - set(table.routes) - set(table.ended)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingCandidate:
    """A replica that accepts requests, with the figures that the choice for one request needs."""

    load_tokens: int  # remaining work of its live requests
    cached_tokens: int = 0  # tokens of this request's prompt that are probably in its prefix cache
    fingerprint: str = ""


def choose(candidates: Mapping[ReplicaId, RoutingCandidate], prompt_tokens: int) -> ReplicaId | None:
    """The replica with the least work, including this prompt's uncached tokens; among equals, the first by name.

    A request therefore goes to a replica with its prefix unless another replica's lower load saves more.
    """

    def work(one: ReplicaId) -> int:
        candidate = candidates[one]
        return candidate.load_tokens + max(0, prompt_tokens - candidate.cached_tokens)

    return min(candidates, key=lambda one: (work(one), one), default=None)


@dataclass(frozen=True, slots=True)
class NoReplicaYet:
    """No replica can take the request now, but one may soon."""


@dataclass(frozen=True, slots=True)
class Never:
    """No replica will take the request. `reason`: why."""

    reason: str


def successor(
    candidates: Mapping[ReplicaId, RoutingCandidate], table: RoutingTable, fingerprint: str, prompt_tokens: int
) -> ReplicaId | NoReplicaYet | Never:
    """The replica for a request whose replica was lost. It must have the same fingerprint."""
    equal = {one: candidate for one, candidate in candidates.items() if candidate.fingerprint == fingerprint}
    chosen = choose(equal, prompt_tokens)
    if chosen is not None:
        return chosen
    if table.draining:
        return Never("the cluster is draining")
    unheard = set(table.routes) - set(table.ended) - set(candidates)
    if table.pending or unheard:
        return NoReplicaYet()
    others = ", ".join(f"{one} has {candidates[one].fingerprint}" for one in sorted(candidates))
    return Never(f"no replica with fingerprint {fingerprint} is left" + (f" ({others})" if others else ""))
