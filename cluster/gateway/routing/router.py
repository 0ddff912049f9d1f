"""Chooses a replica. Pure: the controller's table, and what each replica has to do and knows, in; decisions, out."""

from collections.abc import Collection, Mapping
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
    """What the controller says: who takes requests, who ended and why, and how many more are on their way."""

    routes: Mapping[ReplicaId, str] = field(default_factory=dict)  # HOST:PORT of each leader
    ended: Mapping[ReplicaId, str] = field(default_factory=dict)
    draining: bool = False
    version: int = 0
    pending: int = 0  # replicas that are being started, or will be


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What makes a gateway's connections match a table."""

    connect: Mapping[ReplicaId, str]
    end: Mapping[ReplicaId, str]  # with the reason: their requests go elsewhere now
    retire: frozenset[ReplicaId]  # take no more requests, and finish those they have


def changes(connected: Collection[ReplicaId], table: RoutingTable) -> Changes:
    """A generation that ended never comes back, whatever else the table says of it."""
    known = set(connected)
    return Changes(
        connect={one: at for one, at in table.routes.items() if one not in known and one not in table.ended},
        end={one: reason for one, reason in table.ended.items() if one in known},
        retire=frozenset(known - set(table.routes) - set(table.ended)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingCandidate:
    """A replica that takes requests, as one request sees it."""

    load_tokens: int  # work that its live requests still have
    cached_tokens: int = 0  # of this request's prompt, likely in its prefix cache
    fingerprint: str = ""


def choose(candidates: Mapping[ReplicaId, RoutingCandidate], prompt_tokens: int) -> ReplicaId | None:
    """The replica with the least work before it, this prompt's own included; of equals, the first by name.

    So a request follows its prefix for as long as what that spares is more than the others' lead.
    """

    def work(one: ReplicaId) -> int:
        candidate = candidates[one]
        return candidate.load_tokens + max(0, prompt_tokens - candidate.cached_tokens)

    return min(candidates, key=lambda one: (work(one), one), default=None)


@dataclass(frozen=True, slots=True)
class NoReplicaYet:
    """None can take the request now; one may soon."""


@dataclass(frozen=True, slots=True)
class Never:
    """None will take the request, and why."""

    reason: str


def successor(
    candidates: Mapping[ReplicaId, RoutingCandidate], table: RoutingTable, fingerprint: str, prompt_tokens: int
) -> ReplicaId | NoReplicaYet | Never:
    """Where a request goes whose replica was lost: to one that computes the same bits, and to no other."""
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
