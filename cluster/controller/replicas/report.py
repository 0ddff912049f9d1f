"""The state of the replicas that the controller returns to `outrider serve` for every heartbeat."""

from dataclasses import dataclass

from outrider.cluster.controller.reconcile import Phase
from outrider.cluster.controller.replicas.replica import Replica


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaReport:
    """The state of one replica."""

    name: str
    phase: Phase
    problem: str = ""
    waiting: str = ""  # the resources it waits for
    eviction: str = ""  # why it must leave its nodes
    loaded: tuple[float, ...] = ()  # by rank: share of its weights that is loaded, 0..1
    states: tuple[str, ...] = ()  # by rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The state of all replicas."""

    replicas: tuple[ReplicaReport, ...]
    ever_ready: bool  # whether any replica was ever ready
    has_mtp: bool  # whether the checkpoint has MTP weights; True until it is known

    @property
    def phase(self) -> Phase:
        """READY if a replica is ready and no other is starting; FAILED if none will become ready."""
        phases = {replica.phase for replica in self.replicas if not replica.waiting}
        if Phase.STARTING in phases or Phase.ABSENT in phases:
            return Phase.STARTING
        if Phase.READY in phases:
            return Phase.READY
        hopeless = self.replicas and all(replica.phase is Phase.FAILED for replica in self.replicas)
        return Phase.FAILED if hopeless and not self.ever_ready else Phase.STARTING

    @property
    def problem(self) -> str:
        """The problem of the first replica that has one."""
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
