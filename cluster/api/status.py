"""A cluster's status and its model, as clients see them."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from outrider.proto import cluster_pb2
from outrider.workers.types.counters import ExpertFigures
from outrider.workers.types.model.served_model import ServedModel, served_model_fields


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """One worker process."""

    rank: int
    stage: int
    first_layer: int
    end_layer: int  # one past the last
    node: str
    pid: int
    device: str
    state: str  # "starting", "loading", "ready" or "failed"
    busy: float  # share of the time since start in which it computed, 0..1
    visible_devices: str = ""  # accelerators of its node that it uses; empty on a CPU
    interface: str = ""  # network interface to ranks on other nodes
    node_id: str = ""  # Ray's
    drafting: float = 0.0  # part of `busy` spent on drafts, also as a share of the time since start
    carriers: str = ""  # transport to other ranks of its stage, e.g. "shared memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationStatus:
    """A replica's speculative decoding. Speed-up, price and budget are 0 if unknown, for example with a fixed depth."""

    setting: str = ""  # the engine's setting: "auto", "off" or a fixed depth; empty while it loads
    drafters: tuple[str, ...] = ()  # loaded drafters
    has_mtp: bool = False  # the checkpoint has MTP weights
    speedup: float = 0.0  # recent tokens/s relative to tokens/s without speculation
    draft_depth: float = 0.0  # recent verified drafts per sequence and round
    acceptance_rate: float = 0.0  # accepted / verified drafts since the start
    mean_accepted_length: float = 0.0  # tokens per sequence and round with drafts, since the start; 0: no draft yet
    price: float = 0.0  # minimum tokens per second of time spent on drafts
    budget: float = 0.0  # how many plain rounds of time drafting may still lose
    disabled_rounds: int = 0  # rounds until drafting is enabled again; 0: it is not disabled
    disabled_reason: str = ""
    drafted_per_position: tuple[int, ...] = ()  # [j]: rounds of a sequence that verified at least j + 1 drafts
    accepted_per_position: tuple[int, ...] = ()  # [j]: those of them that accepted the first j + 1
    alarms: Mapping[str, int] = field(default_factory=dict)  # number of times that each drafter alarm was raised

    @property
    def drafts(self) -> int:
        """Rounds of a sequence that verified at least one draft."""
        return next(iter(self.drafted_per_position), 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatus:
    """The load and counters of one replica's engine."""

    running: int
    waiting: int
    rounds: int
    kv_cache_usage: float  # 0..1
    drafted: int
    accepted: int
    generated_tokens: int = 0
    speculation: SpeculationStatus = field(default_factory=SpeculationStatus)
    experts: ExpertFigures = field(default_factory=ExpertFigures)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStatus:
    """One complete copy of the model."""

    name: str
    generation: int
    state: str  # "waiting" (for resources), "starting", "ready", "draining" or "failed"
    problem: str  # why it failed, which resources it waits for, or why it must leave its node
    ranks: tuple[WorkerStatus, ...]
    engine: EngineStatus
    last_ending: str = ""  # why the previous generation ended; empty if there was none
    fingerprint: str = ""  # empty while it loads


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayStatus:
    """The gateway that answered. Counts are since its start."""

    live_requests: int = 0
    queued_requests: int = 0  # accepted requests that are not sent to a replica yet
    refused: Mapping[str, int] = field(default_factory=dict)  # requests refused because of a limit, by cause
    resumed: int = 0  # requests that clients resumed here
    moved: int = 0  # number of times that a request moved to another replica
    waiting_for_successor: int = 0  # requests that wait for another replica now
    slow_readers: int = 0  # requests ended because their clients did not read
    longest_loop_lag_s: float = 0.0  # within the last minute
    controller_lost: bool = False
    stalled_replicas: int = 0  # replicas that ended because their rounds hung


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterStatus:
    """`problem`: one line on why the cluster cannot serve; empty if it can."""

    name: str
    model: str
    version: str
    replicas: tuple[ReplicaStatus, ...]
    problem: str
    desired_replicas: int = 0
    last_scaling: str = ""  # the autoscaler's last change and its reason
    gateway: GatewayStatus | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """Progress towards the desired number of replicas."""

    desired: int
    ready: int
    pending: int
    reason: str  # why replicas are pending; empty if none are


@dataclass(frozen=True, slots=True, kw_only=True)
class Draining:
    """A replica that accepts no more requests."""

    replica: str
    running: int  # its unfinished sequences
    desired: int  # the new desired number of replicas


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo(ServedModel):
    """The served model. Replicas with the same fingerprint generate the same text."""

    name: str
    path: str


def status_from_wire(status: cluster_pb2.GetStatusResponse) -> ClusterStatus:
    return ClusterStatus(
        name=status.name,
        model=status.model,
        version=status.version,
        replicas=tuple(_replica_from_wire(replica) for replica in status.replicas),
        problem=status.problem,
        desired_replicas=status.desired_replicas,
        last_scaling=status.last_scaling,
        gateway=_gateway_from_wire(status.gateway) if status.HasField("gateway") else None,
    )


def _gateway_from_wire(gateway: cluster_pb2.GatewayStatus) -> GatewayStatus:
    values = {one.name: getattr(gateway, one.name) for one in dataclasses.fields(GatewayStatus)}
    return GatewayStatus(**{**values, "refused": dict(sorted(gateway.refused.items()))})


def scaling_from_wire(scaling: cluster_pb2.ScaleResponse) -> Scaling:
    return Scaling(desired=scaling.desired, ready=scaling.ready, pending=scaling.pending, reason=scaling.reason)


def draining_from_wire(draining: cluster_pb2.DrainResponse) -> Draining:
    return Draining(replica=draining.replica, running=draining.running, desired=draining.desired)


def _replica_from_wire(replica: cluster_pb2.ReplicaStatus) -> ReplicaStatus:
    return ReplicaStatus(
        name=replica.name,
        generation=replica.generation,
        state=replica.state,
        problem=replica.problem,
        last_ending=replica.last_ending,
        fingerprint=replica.fingerprint,
        ranks=tuple(_rank_from_wire(rank) for rank in replica.ranks),
        engine=EngineStatus(
            running=replica.engine.running,
            waiting=replica.engine.waiting,
            rounds=replica.engine.rounds,
            kv_cache_usage=replica.engine.kv_cache_usage,
            drafted=replica.engine.drafted,
            accepted=replica.engine.accepted,
            generated_tokens=replica.engine.generated_tokens,
            speculation=speculation_from_wire(replica.engine.speculation),
            experts=experts_from_wire(replica.engine.experts),
        ),
    )


def experts_from_wire(experts: cluster_pb2.ExpertStatus) -> ExpertFigures:
    return ExpertFigures(
        imbalance=dict(sorted(experts.imbalance.items())),
        replacements=experts.replacements,
        moves=experts.moves,
        stopped=experts.stopped,
    )


def speculation_from_wire(speculation: cluster_pb2.SpeculationStatus) -> SpeculationStatus:
    return SpeculationStatus(
        setting=speculation.setting,
        drafters=tuple(speculation.drafters),
        has_mtp=speculation.has_mtp,
        speedup=speculation.speedup,
        draft_depth=speculation.draft_depth,
        acceptance_rate=speculation.acceptance_rate,
        mean_accepted_length=speculation.mean_accepted_length,
        price=speculation.price,
        budget=speculation.budget,
        disabled_rounds=speculation.disabled_rounds,
        disabled_reason=speculation.disabled_reason,
        drafted_per_position=tuple(speculation.drafted_per_position),
        accepted_per_position=tuple(speculation.accepted_per_position),
        alarms=dict(speculation.alarms),
    )


def _rank_from_wire(rank: cluster_pb2.RankStatus) -> WorkerStatus:
    return WorkerStatus(
        rank=rank.rank,
        stage=rank.stage,
        first_layer=rank.first_layer,
        end_layer=rank.end_layer,
        node=rank.node,
        pid=rank.pid,
        device=rank.device,
        state=rank.state,
        busy=rank.busy,
        drafting=rank.drafting,
        visible_devices=rank.visible_devices,
        interface=rank.interface,
        node_id=rank.node_id,
        carriers=rank.carriers,
    )


def model_from_wire(model: cluster_pb2.GetModelResponse) -> ModelInfo:
    return ModelInfo(
        name=model.name,
        path=model.path,
        **served_model_fields(model),
    )
