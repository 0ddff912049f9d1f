"""Which replicas there should be: how many are wanted x those there are -> who comes and who leaves. Pure."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from outrider.cluster.controller.reconcile import Goal, Phase

# The first to leave: what serves least.
_LEAVES_BEFORE = (Phase.FAILED, Phase.ABSENT, Phase.STARTING, Phase.READY, Phase.DRAINING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One replica, as far as the choice goes."""

    name: str
    goal: Goal
    phase: Phase
    load: int = 0  # sequences running and waiting
    evicted: bool = False  # it runs on a node that is being drained


@dataclass(frozen=True, slots=True)
class Add:
    name: str


@dataclass(frozen=True, slots=True)
class Release:
    """This one is to drain."""

    name: str


def changes(desired: int, members: Sequence[Member]) -> list[Add | Release]:
    """What makes `desired` of them serve: new names (r0, r1, ..., none in use), or the least useful released.

    A replica that drains is not called back: its gateways have let go of it. One that is evicted serves until another
    is ready in its place, and so for as long as there is no room for that.
    """
    serving = [member for member in members if member.goal is Goal.SERVE]
    staying = [member for member in serving if not member.evicted]
    evicted = [member for member in serving if member.evicted]
    ready = sum(member.phase is Phase.READY for member in staying)
    leaving = [*_surplus(staying, desired), *_surplus(evicted, max(0, desired - ready))]
    names = _new_names(desired - len(staying), [member.name for member in members])
    return [*(Release(member.name) for member in leaving), *(Add(name) for name in names)]


def _surplus(members: Sequence[Member], wanted: int) -> list[Member]:
    """Those that leave for so many to remain."""
    return sorted(members, key=_usefulness)[: max(0, len(members) - wanted)]


def _usefulness(member: Member) -> tuple[int, int, int]:
    """Of equals the one that came last leaves first."""
    return _LEAVES_BEFORE.index(member.phase), member.load, -number(member.name)


def number(name: str) -> int:
    return int(name.removeprefix("r"))


def _new_names(count: int, taken: Collection[str]) -> list[str]:
    free = (f"r{n}" for n in range(max(0, count) + len(taken)))
    return [name for name in free if name not in taken][: max(0, count)]
