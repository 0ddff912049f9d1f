"""Decides which replicas to add and to release: desired number x existing replicas -> changes. Pure."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from outrider.cluster.controller.reconcile import Goal, Phase

# The order in which replicas are released: those that serve least first.
_LEAVES_BEFORE = (Phase.FAILED, Phase.ABSENT, Phase.STARTING, Phase.READY, Phase.DRAINING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """The properties of a replica that the choice depends on."""

    name: str
    goal: Goal
    phase: Phase
    load: int = 0  # running and waiting sequences
    evicted: bool = False  # it runs on a node that is being drained


@dataclass(frozen=True, slots=True)
class Add:
    name: str


@dataclass(frozen=True, slots=True)
class Release:
    """Drain this replica."""

    name: str


def changes(desired: int, members: Sequence[Member]) -> list[Add | Release]:
    """The changes after which `desired` replicas serve: new ones with unused names (r0, r1, ...), or releases.

    A draining replica is not reused, since gateways no longer send requests to it. An evicted replica serves until its
    replacement is ready, even if there are no resources for one.
    """
    serving = [member for member in members if member.goal is Goal.SERVE]
    staying = [member for member in serving if not member.evicted]
    evicted = [member for member in serving if member.evicted]
    ready = sum(member.phase is Phase.READY for member in staying)
    leaving = [*_surplus(staying, desired), *_surplus(evicted, max(0, desired - ready))]
    names = _new_names(desired - len(staying), [member.name for member in members])
    return [*(Release(member.name) for member in leaving), *(Add(name) for name in names)]


def _surplus(members: Sequence[Member], wanted: int) -> list[Member]:
    """The members to release so that `wanted` remain."""
    return sorted(members, key=_usefulness)[: max(0, len(members) - wanted)]


def _usefulness(member: Member) -> tuple[int, int, int]:
    """Sort key: the least useful first. Among equals, the newest first."""
    return _LEAVES_BEFORE.index(member.phase), member.load, -number(member.name)


def number(name: str) -> int:
    return int(name.removeprefix("r"))


def _new_names(count: int, taken: Collection[str]) -> list[str]:
    free = (f"r{n}" for n in range(max(0, count) + len(taken)))
    return [name for name in free if name not in taken][: max(0, count)]
