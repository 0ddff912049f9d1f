"""ControllerService: what gateways ask of the controller. The only file of the controller that knows protobuf."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

import grpc

import outrider
from outrider.cluster.reconcile import Phase
from outrider.cluster.replica import Replica
from outrider.cluster.routes import RouteTable, Table
from outrider.proto import cluster_pb2, cluster_pb2_grpc
from outrider.workers.engine.request import EngineCounters
from outrider.workers.errors import OutriderError

Context = grpc.aio.ServicerContext[Any, Any]


class Controlled(Protocol):
    """What the service reads from its controller."""

    @property
    def replicas(self) -> Sequence[Replica]: ...

    @property
    def table(self) -> RouteTable: ...


class ControllerService(cluster_pb2_grpc.ControllerServiceServicer):
    """Answers from the controller's own loop, so it reads without locks."""

    def __init__(self, cluster: str, model_name: str, model_path: str, controlled: Controlled) -> None:
        self._cluster, self._model_name, self._model_path = cluster, model_name, model_path
        self._controlled = controlled

    async def GetStatus(  # noqa: N802  # the name is the protocol's
        self, request: cluster_pb2.GetStatusRequest, context: Context
    ) -> cluster_pb2.GetStatusResponse:
        replicas = self._controlled.replicas
        problems = [_problem(replica) for replica in replicas if replica.problem]
        serving = any(replica.phase is Phase.READY for replica in replicas)
        return cluster_pb2.GetStatusResponse(
            name=self._cluster,
            model=self._model_name,
            version=outrider.__version__,
            replicas=[replica_status(replica) for replica in replicas],
            problem="" if serving else "; ".join(problems),
        )

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
            fingerprint=info.fingerprint,
            max_model_len=info.max_model_len,
            vocab_size=info.vocab_size,
            dtype=info.dtype,
            numerics=info.numerics,
            speculation=info.speculation,
            has_mtp=info.has_mtp,
        )

    async def WatchRoutes(  # noqa: N802  # the name is the protocol's
        self, request: cluster_pb2.WatchRoutesRequest, context: Context
    ) -> AsyncIterator[cluster_pb2.WatchRoutesResponse]:
        async for table in self._controlled.table.watch():
            yield routes_response(table)


def bind(server: grpc.aio.Server, host: str, port: int) -> int:
    """The port it is, a free one for 0. OutriderError if it is taken."""
    try:
        return int(server.add_insecure_port(f"{host}:{port}"))
    except RuntimeError as error:
        raise OutriderError(f"the controller cannot listen on {host}:{port}: choose another controller_port") from error


def _problem(replica: Replica) -> str:
    return f"replica {replica.name} ended ({replica.problem}) and is not rebuilt: restart `outrider serve`"


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
    )


def replica_status(replica: Replica) -> cluster_pb2.ReplicaStatus:
    counters = replica.leader.counters if replica.phase is not Phase.FAILED else EngineCounters()
    return cluster_pb2.ReplicaStatus(
        name=replica.name,
        generation=replica.generation,
        state=replica.phase.value,
        problem=replica.problem,
        ranks=[_rank_status(replica, rank) for rank in range(replica.plan.world_size)],
        engine=cluster_pb2.EngineStatus(
            running=counters.running,
            waiting=counters.waiting,
            rounds=counters.rounds,
            kv_cache_usage=counters.kv_cache_usage,
            drafted=counters.drafted,
            generated_tokens=counters.generated_tokens,
            accepted=counters.accepted,
            speculation=speculation_to_wire(counters),
        ),
    )


def speculation_to_wire(counters: EngineCounters) -> cluster_pb2.SpeculationStatus:
    figures = counters.speculation
    return cluster_pb2.SpeculationStatus(
        price=figures.price,
        gain=figures.gain,
        ledger=figures.ledger,
        stopped=figures.stopped,
        depth=figures.depth,
        forecast_error=figures.forecast_error,
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
    return cluster_pb2.RankStatus(
        rank=rank,
        stage=stage,
        first_layer=first,
        end_layer=end,
        node=probe.host if probe is not None else "",
        pid=probe.pid if probe is not None else 0,
        device=replica.device,
        state="failed" if replica.phase is Phase.FAILED else state,
        busy=status.busy_s / status.elapsed_s if status is not None and status.elapsed_s > 0 else 0.0,
    )
