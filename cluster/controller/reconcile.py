"""What to do next about a replica: desired x observed -> actions. Pure: clocks and facts arrive as values."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from outrider.cluster.api.endings import HANG, HANGS


class Goal(Enum):
    """What a replica is wanted for."""

    SERVE = "serve"
    DRAIN = "drain"  # finish what runs, or let it go on elsewhere, and leave
    STOP = "stop"  # leave now: the gateways have drained


class Phase(Enum):
    """Where a replica stands; the values are the words of cluster.proto."""

    ABSENT = "absent"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Seconds of silence after which a rank counts as lost, by how far it got.

    A ready rank answers from a thread that nothing holds up for long; one that imports libraries or loads weights may
    be held up by the disk, and one that never answered may still wait for its process to start.
    """

    starting_s: float = 120.0
    loading_s: float = 30.0
    ready_s: float = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """How far the drain of a replica has got."""

    idle: bool = False  # nothing runs there any more, and no gateway still sends
    overdue: bool = False  # it has had all the time that a drain may take


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedRank:
    """The last that is known of a rank. Times are on the observer's monotonic clock."""

    rank: int
    label: str  # "rank 1 (stage 1, layers 7..12, pid 123)"
    state: str = "starting"  # until its first answer
    waiting_since: float | None = None  # when the probe that it owes an answer was sent
    answered_at: float | None = None  # when the last probe that it answered was sent
    error: str = ""
    failed_at: float | None = None  # when its answer first said "failed"
    stall: str = ""  # what hangs, though all answer, as the leader sees it
    computing_s: float = 0.0  # how long it has been at its stage of a round; 0 while it waits for others
    death: str = ""  # set once Ray says that its process is gone

    def asked(self, at: float) -> "ObservedRank":
        """A probe was sent; the silence counts from the first that has no answer yet."""
        return self if self.waiting_since is not None else replace(self, waiting_since=at)


@dataclass(frozen=True, slots=True)
class Start:
    """Bring up a gang: the next generation."""


@dataclass(frozen=True, slots=True)
class Publish:
    """Tell the gateways that the replica takes requests."""


@dataclass(frozen=True, slots=True)
class Retire:
    """Tell the gateways that it takes no more; those it has go on."""


@dataclass(frozen=True, slots=True)
class End:
    """The gang is broken: withdraw its route, kill what is left of it, and say why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """The gang is not wanted any more. With a reason its requests are told to go on elsewhere."""

    reason: str = ""


Action = Start | Publish | Retire | End | Stop
FIRST_RETRY_S = 1.0
LAST_RETRY_S = 60.0


def retry_delay_s(failures: int) -> float:
    """How long to wait before the next generation, after so many that failed one after another."""
    return min(LAST_RETRY_S, FIRST_RETRY_S * 2.0 ** (failures - 1))


def reconcile(
    *,
    goal: Goal,
    phase: Phase,
    problem: str,
    ranks: Sequence[ObservedRank],
    now: float,
    deadlines: Deadlines,
    leaving: Leaving | None = None,
    retry_at: float | None = None,
) -> list[Action]:
    """The next steps towards what is wanted.

    `problem` is what kept the gang from being brought up. `leaving` matters while it drains, and `retry_at` (None:
    never) when it has failed.
    """
    if goal is Goal.STOP:
        return [Stop()] if phase in (Phase.STARTING, Phase.READY, Phase.DRAINING) else []
    if phase is Phase.ABSENT or (phase is Phase.FAILED and retry_at is not None and now >= retry_at):
        return [Start()] if goal is Goal.SERVE else []
    if phase not in (Phase.STARTING, Phase.READY, Phase.DRAINING):
        return []
    if goal is Goal.DRAIN and phase is Phase.STARTING:
        return [Stop()]
    reason = fault(ranks, now, deadlines) or problem
    if reason:
        return [End(reason)]
    if goal is Goal.DRAIN:
        return _drain(phase, leaving or Leaving())
    if phase is Phase.STARTING and ranks and all(rank.state == "ready" for rank in ranks):
        return [Publish()]
    return []


def _drain(phase: Phase, leaving: Leaving) -> list[Action]:
    if phase is Phase.READY:
        return [Retire()]
    if leaving.idle:
        return [Stop()]
    return [Stop("it was drained, and its time was over")] if leaving.overdue else []


def fault(ranks: Sequence[ObservedRank], now: float, deadlines: Deadlines) -> str:
    """Why the gang cannot go on, naming the rank that caused it; empty if it can.

    A dead rank explains a silent one, and either explains a failure that others report: a rank that lost its peer
    says so at once, so its word counts only when every other rank has answered since. A rank that answers and makes no
    progress comes last: any of the others may be what it waits for.
    """
    for rank in ranks:
        if rank.death:
            return f"{rank.label} died: {rank.death}"
    for rank in ranks:
        silence = 0.0 if rank.waiting_since is None else now - rank.waiting_since
        if silence > _deadline(rank, deadlines):
            verb = "did not start within" if rank.answered_at is None else "stopped answering for"
            return f"{rank.label} {verb} {silence:.1f} s"
    for rank in ranks:
        others = [other for other in ranks if other.rank != rank.rank]
        if rank.failed_at is not None and all(_answered_since(other, rank.failed_at) for other in others):
            return f"{rank.label} failed: {rank.error}"
    return next((_hang(rank, ranks) for rank in ranks if rank.stall), "")


def _hang(leader: ObservedRank, ranks: Sequence[ObservedRank]) -> str:
    """Who hangs is who computes: the others wait. In an exchange that hangs, that is all who take part."""
    longest_s = max(rank.computing_s for rank in ranks)
    hung = [rank for rank in ranks if longest_s and rank.computing_s > longest_s / 2] or [leader]
    names = " and ".join(rank.label for rank in hung)
    return f"{names}{HANGS if len(hung) == 1 else HANG}{leader.stall}"


def _answered_since(rank: ObservedRank, time: float) -> bool:
    return rank.answered_at is not None and rank.answered_at > time


def _deadline(rank: ObservedRank, deadlines: Deadlines) -> float:
    if rank.answered_at is None:
        return deadlines.starting_s
    return deadlines.loading_s if rank.state in ("starting", "loading") else deadlines.ready_s
