"""What the controller tells `outrider serve` with every heartbeat."""

from dataclasses import dataclass

from outrider.cluster.controller.reconcile import Phase
from outrider.cluster.controller.replica import Replica


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaReport:
    """One replica, as `outrider serve` hears of it."""

    name: str
    phase: Phase
    problem: str = ""
    waiting: str = ""  # for what room
    eviction: str = ""  # why it cannot stay where it is
    loaded: tuple[float, ...] = ()  # by rank: share of its weights, 0..1
    states: tuple[str, ...] = ()  # by rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How things stand."""

    replicas: tuple[ReplicaReport, ...]
    ever_ready: bool  # one of them has been, at some time
    has_mtp: bool  # whether the model can draft for itself; True until it is known

    @property
    def phase(self) -> Phase:
        """READY when a replica serves, and none of the others is about to; FAILED when none ever will."""
        phases = {replica.phase for replica in self.replicas if not replica.waiting}
        if Phase.STARTING in phases or Phase.ABSENT in phases:
            return Phase.STARTING
        if Phase.READY in phases:
            return Phase.READY
        hopeless = self.replicas and all(replica.phase is Phase.FAILED for replica in self.replicas)
        return Phase.FAILED if hopeless and not self.ever_ready else Phase.STARTING

    @property
    def problem(self) -> str:
        """What is wrong, of the first that has something wrong."""
        return next((replica.problem for replica in self.replicas if replica.problem), "")


def report_on(replica: Replica) -> ReplicaReport:
    probes = [replica.probe_of(rank) for rank in replica.ranks]
    return ReplicaReport(
        name=replica.name,
        phase=replica.phase,
        problem=replica.problem,
        waiting=replica.waiting,
        eviction=replica.eviction,
        loaded=tuple(probe.status.loaded if probe and probe.status else 0.0 for probe in probes),
        states=tuple(rank.state for rank in replica.observed),
    )
