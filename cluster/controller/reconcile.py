"""Decides the next actions of a replica: desired state x observed state -> actions. Pure: takes times as values."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from outrider.cluster.api.endings import HANG, HANGS


class Goal(Enum):
    """The desired state of a replica."""

    SERVE = "serve"
    DRAIN = "drain"  # finish running requests, or move them, then stop
    STOP = "stop"  # stop now: the gateways have drained


class Phase(Enum):
    """The observed state of a replica; the values are those of cluster.proto."""

    ABSENT = "absent"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Seconds without an answer after which a rank counts as lost, by its state.

    A ready rank answers from a thread that is never blocked for long. A rank that imports libraries or loads weights
    may be blocked by the disk. A rank that has never answered may still wait for its process to start.
    """

    starting_s: float = 120.0
    loading_s: float = 30.0
    ready_s: float = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainProgress:
    """Progress of a replica's drain."""

    idle: bool = False  # no request is running, and no gateway still sends any
    overdue: bool = False  # the drain's time limit has passed


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedRank:
    """The latest observations of a rank. Times are on the observer's monotonic clock."""

    rank: int
    label: str  # "rank 1 (stage 1, layers 7..12, pid 123)"
    state: str = "starting"  # until its first answer
    waiting_since: float | None = None  # when the first unanswered probe was sent
    answered_at: float | None = None  # when the last answered probe was sent
    error: str = ""
    failed_at: float | None = None  # when it first reported state "failed"
    stall: str = ""  # what hangs according to the leader, although all ranks answer
    computing_s: float = 0.0  # time spent so far on its stage of the current round; 0 while it waits for other ranks
    death: str = ""  # Ray's reason, once its process has ended

    def probed(self, at: float) -> "ObservedRank":
        """After sending a probe. Silence counts from the first unanswered probe."""
        return self if self.waiting_since is not None else replace(self, waiting_since=at)


@dataclass(frozen=True, slots=True)
class Start:
    """Start a gang, as the next generation."""


@dataclass(frozen=True, slots=True)
class Publish:
    """Announce to the gateways that the replica accepts requests."""


@dataclass(frozen=True, slots=True)
class Retire:
    """Announce to the gateways that the replica accepts no new requests; running requests continue."""


@dataclass(frozen=True, slots=True)
class End:
    """The gang is broken: withdraw its route with this reason, and kill the remaining ranks."""

    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """The gang is no longer desired. With a reason, its running requests move to other replicas."""

    reason: str = ""


Action = Start | Publish | Retire | End | Stop
FIRST_RETRY_S = 1.0
LAST_RETRY_S = 60.0


def retry_delay_s(failures: int) -> float:
    """Delay before the next generation, after this number of consecutive failures."""
    return min(LAST_RETRY_S, FIRST_RETRY_S * 2.0 ** (failures - 1))


def reconcile(
    *,
    goal: Goal,
    phase: Phase,
    problem: str,
    ranks: Sequence[ObservedRank],
    now: float,
    deadlines: Deadlines,
    drain: DrainProgress | None = None,
    retry_at: float | None = None,
) -> list[Action]:
    """The next actions towards the desired state.

    `problem`: why the gang could not be started. `drain`: used while the replica drains. `retry_at`: used when it has
    failed; None disables retries.
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
        return _drain(phase, drain or DrainProgress())
    if phase is Phase.STARTING and ranks and all(rank.state == "ready" for rank in ranks):
        return [Publish()]
    return []


def _drain(phase: Phase, drain: DrainProgress) -> list[Action]:
    if phase is Phase.READY:
        return [Retire()]
    if drain.idle:
        return [Stop()]
    return [Stop("it was drained, and the drain's time limit has passed")] if drain.overdue else []


def fault(ranks: Sequence[ObservedRank], now: float, deadlines: Deadlines) -> str:
    """Why the gang cannot continue, with the rank that caused it; empty if it can.

    In order of precedence: a dead rank, a silent rank, a failed rank, a hanging rank. Each may be the cause of those
    after it. A rank reports a failure as soon as it loses a peer, so the failure is used only once every other rank has
    answered since then.
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
    """Names the ranks that still compute, since others wait for them. In a hung collective, all members compute."""
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
