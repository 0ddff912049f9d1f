"""ControllerService, the gRPC API for gateways. The only file of the controller that uses protobuf."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

import grpc

import outrider
from outrider.cluster.api.controller_options import SERVER_OPTIONS
from outrider.cluster.api.health import Health
from outrider.cluster.api.load_report import Load
from outrider.cluster.controller.cluster_spec import ClusterSpec
from outrider.cluster.controller.reconcile import Goal, Phase
from outrider.cluster.controller.replicas.replica import Replica
from outrider.cluster.controller.routes import RouteTable, Table
from outrider.proto import cluster_pb2, cluster_pb2_grpc
from outrider.workers.engine.handle import EngineInfo
from outrider.workers.serving.rpc.cluster_key import interceptors
from outrider.workers.types.counters import EngineCounters, ExpertFigures
from outrider.workers.types.errors import OutriderError
from outrider.workers.types.model.served_model import served_model_fields

WATCH_EVERY_S = 0.5
MOST_REPLICAS = 1024

Context = grpc.aio.ServicerContext[Any, Any]


class Controlled(Protocol):
    """The part of the controller that the service uses."""

    @property
    def replicas(self) -> Sequence[Replica]: ...

    @property
    def desired(self) -> int: ...

    @property
    def last_scaling(self) -> str: ...

    @property
    def machines_problem(self) -> str: ...

    @property
    def table(self) -> RouteTable: ...

    async def scale(self, replicas: int) -> None: ...

    async def drain_replica(self, name: str) -> None: ...

    def report_waiting(self, gateway: str, load: Load) -> None: ...


class ControllerService(cluster_pb2_grpc.ControllerServiceServicer):
    """Runs in the controller's event loop, so it needs no locks."""

    def __init__(self, cluster: str, model_name: str, model_path: str, controlled: Controlled) -> None:
        self._cluster, self._model_name, self._model_path = cluster, model_name, model_path
        self._controlled = controlled

    async def GetStatus(  # noqa: N802  # the name is the protocol's
        self, request: cluster_pb2.GetStatusRequest, context: Context
    ) -> cluster_pb2.GetStatusResponse:
        return self._status()

    def _status(self) -> cluster_pb2.GetStatusResponse:
        replicas = self._controlled.replicas
        serving = any(replica.phase is Phase.READY for replica in replicas)
        problems = [line for replica in replicas if (line := _problem(replica))]
        problems += [self._controlled.machines_problem] if self._controlled.machines_problem else []
        return cluster_pb2.GetStatusResponse(
            name=self._cluster,
            model=self._model_name,
            version=outrider.__version__,
            replicas=[replica_status(replica) for replica in replicas],
            problem="" if serving else "; ".join(problems),
            desired_replicas=self._controlled.desired,
            last_scaling=self._controlled.last_scaling,
        )

    async def WatchStatus(  # noqa: N802  # the name is the protocol's
        self, request: cluster_pb2.WatchStatusRequest, context: Context
    ) -> AsyncIterator[cluster_pb2.WatchStatusResponse]:
        """The current status, then each changed one. Compares at the interval of the ranks' probes."""
        sent: cluster_pb2.GetStatusResponse | None = None
        while True:
            status = self._status()
            if status != sent:
                yield cluster_pb2.WatchStatusResponse(status=status)
                sent = status
            await asyncio.sleep(WATCH_EVERY_S)

    async def Scale(  # noqa: N802  # the name is the protocol's
        self, request: cluster_pb2.ScaleRequest, context: Context
    ) -> cluster_pb2.ScaleResponse:
        if request.replicas > MOST_REPLICAS:
            message = f"replicas must be 0..{MOST_REPLICAS}, got {request.replicas}"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)
        await self._controlled.scale(request.replicas)
        return scale_response(self._controlled.desired, self._controlled.replicas)

    async def Drain(  # noqa: N802  # the name is the protocol's
        self, request: cluster_pb2.DrainRequest, context: Context
    ) -> cluster_pb2.DrainResponse:
        found = {replica.name: replica for replica in self._controlled.replicas}
        if request.replica not in found:
            names = ", ".join(found) or "none"
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no replica {request.replica!r}: there are {names}")
        await self._controlled.drain_replica(request.replica)
        running = found[request.replica].sequences
        return cluster_pb2.DrainResponse(replica=request.replica, running=running, desired=self._controlled.desired)

    async def GetModel(  # noqa: N802  # the name is the protocol's
        self, request: cluster_pb2.GetModelRequest, context: Context
    ) -> cluster_pb2.GetModelResponse:
        infos = [replica.leader.info for replica in self._controlled.replicas]
        info = next((info for info in infos if info is not None), None)
        if info is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"{self._model_name} is not loaded yet")
        return cluster_pb2.GetModelResponse(
            name=self._model_name,
            path=self._model_path,
            **served_model_fields(info),
        )

    async def WatchRoutes(  # noqa: N802  # the name is the protocol's
        self, request: cluster_pb2.WatchRoutesRequest, context: Context
    ) -> AsyncIterator[cluster_pb2.WatchRoutesResponse]:
        async for table in self._controlled.table.watch():
            yield routes_response(table)

    async def ReportWaiting(  # noqa: N802  # the name is the protocol's
        self, request: cluster_pb2.ReportWaitingRequest, context: Context
    ) -> cluster_pb2.ReportWaitingResponse:
        load = Load(tokens=request.tokens, oldest_wait_s=request.oldest_wait_s)
        self._controlled.report_waiting(request.gateway, load)
        return cluster_pb2.ReportWaitingResponse()


async def serve(spec: ClusterSpec, controlled: Controlled, host: str, port: int) -> tuple[grpc.aio.Server, int]:
    """Starts the server on `host` and `port` (0: any free port). Raises OutriderError if the port is in use."""
    server = grpc.aio.server(options=SERVER_OPTIONS, interceptors=interceptors(spec.key))
    service = ControllerService(spec.cluster, spec.model_name, spec.model_path, controlled)
    cluster_pb2_grpc.add_ControllerServiceServicer_to_server(service, server)
    Health().add_to(server)
    try:
        port = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise OutriderError(f"the controller cannot listen on {host}:{port}: choose another controller_port") from error
    await server.start()
    return server, port


def _problem(replica: Replica) -> str:
    """One line on why this replica does not serve; empty if it has no problem."""
    if replica.phase is Phase.FAILED:
        return f"replica {replica.name} ended ({replica.problem})"
    if replica.waiting:
        return f"replica {replica.name} waits for resources: {replica.waiting}"
    if replica.phase is Phase.STARTING and replica.last_ending:
        return f"replica {replica.name} starts again: {replica.last_ending}"
    return ""


def scale_response(desired: int, replicas: Sequence[Replica]) -> cluster_pb2.ScaleResponse:
    """Numbers of ready and pending replicas, and why some are pending."""
    serving = [replica for replica in replicas if replica.goal is Goal.SERVE]
    ready = sum(replica.phase is Phase.READY for replica in serving)
    reasons = [
        _problem(replica) or f"replica {replica.name} is starting"
        for replica in serving
        if replica.phase is not Phase.READY
    ]
    return cluster_pb2.ScaleResponse(
        desired=desired, ready=ready, pending=max(0, desired - ready), reason="; ".join(reasons)
    )


def routes_response(table: Table) -> cluster_pb2.WatchRoutesResponse:
    return cluster_pb2.WatchRoutesResponse(
        routes=[
            cluster_pb2.Route(replica=route.replica, generation=route.generation, address=route.address)
            for route in table.routes
        ],
        ended=[
            cluster_pb2.EndedReplica(replica=ending.replica, generation=ending.generation, reason=ending.reason)
            for ending in table.ended
        ],
        draining=table.draining,
        version=table.version,
        pending=table.pending,
    )


def replica_status(replica: Replica) -> cluster_pb2.ReplicaStatus:
    counters = replica.leader.counters if replica.phase is not Phase.FAILED else EngineCounters()
    info = replica.leader.info
    return cluster_pb2.ReplicaStatus(
        name=replica.name,
        generation=replica.generation,
        state=_state(replica),
        problem=replica.problem or replica.waiting or replica.eviction,
        last_ending=replica.last_ending,
        fingerprint=info.fingerprint if info is not None else "",
        ranks=[_rank_status(replica, rank) for rank in range(replica.plan.world_size)],
        engine=cluster_pb2.EngineStatus(
            running=counters.running,
            waiting=counters.waiting,
            rounds=counters.rounds,
            kv_cache_usage=counters.kv_cache_usage,
            drafted=counters.drafted,
            generated_tokens=counters.generated_tokens,
            accepted=counters.accepted,
            speculation=speculation_to_wire(counters, info),
            experts=experts_to_wire(counters.experts),
        ),
    )


def experts_to_wire(figures: ExpertFigures) -> cluster_pb2.ExpertStatus:
    return cluster_pb2.ExpertStatus(
        imbalance=figures.imbalance,
        replacements=figures.replacements,
        moves=figures.moves,
        stopped=figures.stopped,
    )


def _state(replica: Replica) -> str:
    """An absent replica is started or removed at the next tick."""
    if replica.phase is Phase.ABSENT:
        return "starting" if replica.goal is Goal.SERVE else "draining"
    return "waiting" if replica.waiting else replica.phase.value


def speculation_to_wire(counters: EngineCounters, info: EngineInfo | None) -> cluster_pb2.SpeculationStatus:
    """`info`: None while the replica loads."""
    figures = counters.speculation
    return cluster_pb2.SpeculationStatus(
        setting=info.speculation if info is not None else "",
        drafters=info.drafters if info is not None else (),
        has_mtp=info is not None and info.has_mtp,
        speedup=figures.speedup,
        draft_depth=figures.draft_depth,
        acceptance_rate=counters.acceptance_rate,
        mean_accepted_length=counters.mean_accepted_length,
        price=figures.price,
        budget=figures.budget,
        disabled_rounds=figures.disabled_rounds,
        disabled_reason=figures.disabled_reason,
        drafted_per_position=counters.drafted_per_position,
        accepted_per_position=counters.accepted_per_position,
        alarms=figures.alarms,
    )


def _rank_status(replica: Replica, rank: int) -> cluster_pb2.RankStatus:
    stage = replica.plan.stage(rank)
    first, end = replica.plan.layer_splits[stage]
    probe = replica.probe_of(rank)
    status = probe.status if probe is not None else None
    state = status.state if status is not None else "starting"
    elapsed_s = status.elapsed_s if status is not None else 0.0
    return cluster_pb2.RankStatus(
        rank=rank,
        stage=stage,
        first_layer=first,
        end_layer=end,
        node=probe.host if probe is not None else "",
        node_id=probe.node_id if probe is not None else "",
        pid=probe.pid if probe is not None else 0,
        device=replica.device,
        visible_devices=probe.visible_devices if probe is not None else "",
        interface=probe.interface if probe is not None else "",
        carriers=status.carriers if status is not None else "",
        state="failed" if replica.phase is Phase.FAILED else state,
        busy=status.busy_s / elapsed_s if status is not None and elapsed_s > 0 else 0.0,
        drafting=status.draft_s / elapsed_s if status is not None and elapsed_s > 0 else 0.0,
    )
