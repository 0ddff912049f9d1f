"""A gateway's connection to the controller: receives the routing table, the model and the cluster status, and reports
the waiting load."""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from outrider.cluster.api.controller_options import CHANNEL_OPTIONS
from outrider.cluster.api.errors import UnavailableError
from outrider.cluster.api.load_report import REPORT_EVERY_S, Load
from outrider.cluster.gateway.observability.gateway_status import gateway_status
from outrider.cluster.gateway.observability.metrics import GatewayMetrics
from outrider.cluster.gateway.routing.fleet import Fleet
from outrider.cluster.gateway.routing.router import ReplicaId, RoutingTable
from outrider.proto import cluster_pb2, cluster_pb2_grpc
from outrider.workers.serving.rpc.cluster_key import key_metadata
from outrider.workers.types import logs
from outrider.workers.types.errors import EngineStoppedError, OutriderError

log = logging.getLogger("outrider.gateway.controller")

ClusterContext = grpc.aio.ServicerContext[Any, Any]

_ASK_TIMEOUT_S = 5.0
_FIRST_RETRY_S = 0.1
_LAST_RETRY_S = 2.0


class ControllerLink:
    """The connection. One event loop. While the controller is unreachable, the last table stays in use."""

    def __init__(self, address: str, key: str = "") -> None:
        """`key`: the cluster key, see workers/serving/rpc/cluster_key.py."""
        self.address = address
        self.connected = False  # the stream of the last table is still open
        self._metadata = key_metadata(key)
        self._channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stub = cluster_pb2_grpc.ControllerServiceStub(self._channel)

    async def watch(self, on_table: Callable[[RoutingTable], None]) -> None:
        """Calls `on_table` with every table, until cancelled. Reconnects with increasing delays."""
        pause = _FIRST_RETRY_S
        while True:
            try:
                async for response in self._stub.WatchRoutes(cluster_pb2.WatchRoutesRequest(), metadata=self._metadata):
                    pause, self.connected = _FIRST_RETRY_S, True
                    on_table(_table_from_wire(response))
                problem: str | None = "the stream ended"
            except grpc.aio.AioRpcError as error:
                problem = error.details()
            self.connected = False
            logs.event(log, logging.WARNING, "controller lost", controller=self.address, reason=problem, retry_s=pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LAST_RETRY_S)

    async def report_waiting(self, waiting: Callable[[], Load]) -> None:
        """Reports the waiting load until cancelled; an empty load only once. Failed reports are dropped."""
        gateway, reported = secrets.token_hex(8), Load()
        while True:
            load = waiting()
            if load != Load() or reported != Load():
                request = cluster_pb2.ReportWaitingRequest(
                    gateway=gateway, tokens=load.tokens, oldest_wait_s=load.oldest_wait_s
                )
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await self._stub.ReportWaiting(request, timeout=_ASK_TIMEOUT_S, metadata=self._metadata)
                    reported = load
            await asyncio.sleep(REPORT_EVERY_S)

    async def get_model(self) -> cluster_pb2.GetModelResponse:
        """Raises AioRpcError if the controller does not answer or has no model yet."""
        response: cluster_pb2.GetModelResponse = await self._stub.GetModel(
            cluster_pb2.GetModelRequest(), timeout=_ASK_TIMEOUT_S, metadata=self._metadata
        )
        return response

    async def get_status(self) -> cluster_pb2.GetStatusResponse:
        """Raises AioRpcError if the controller does not answer."""
        response: cluster_pb2.GetStatusResponse = await self._stub.GetStatus(
            cluster_pb2.GetStatusRequest(), timeout=_ASK_TIMEOUT_S, metadata=self._metadata
        )
        return response

    def watch_status(self) -> AsyncIterator[cluster_pb2.WatchStatusResponse]:
        """The current status, then each changed one. Raises AioRpcError when the connection breaks."""
        stream: AsyncIterator[cluster_pb2.WatchStatusResponse] = self._stub.WatchStatus(
            cluster_pb2.WatchStatusRequest(), metadata=self._metadata
        )
        return stream

    async def scale(self, request: cluster_pb2.ScaleRequest) -> cluster_pb2.ScaleResponse:
        """Raises AioRpcError if the controller does not answer or refuses."""
        response: cluster_pb2.ScaleResponse = await self._stub.Scale(
            request, timeout=_ASK_TIMEOUT_S, metadata=self._metadata
        )
        return response

    async def drain(self, request: cluster_pb2.DrainRequest) -> cluster_pb2.DrainResponse:
        """Raises AioRpcError if the controller does not answer or refuses."""
        response: cluster_pb2.DrainResponse = await self._stub.Drain(
            request, timeout=_ASK_TIMEOUT_S, metadata=self._metadata
        )
        return response

    async def close(self) -> None:
        await self._channel.close()


def _table_from_wire(response: cluster_pb2.WatchRoutesResponse) -> RoutingTable:
    return RoutingTable(
        routes={ReplicaId(route.replica, route.generation): route.address for route in response.routes},
        ended={ReplicaId(one.replica, one.generation): one.reason for one in response.ended},
        draining=response.draining,
        version=response.version,
        pending=response.pending,
    )


class ClusterServicer(cluster_pb2_grpc.ClusterServiceServicer):
    """ClusterService: forwards calls to the controller, except SwapDrafters, which calls the leaders directly."""

    def __init__(self, controller: ControllerLink, fleet: Fleet, metrics: GatewayMetrics) -> None:
        self._controller, self._fleet, self._metrics = controller, fleet, metrics

    async def GetStatus(  # noqa: N802
        self,
        request: cluster_pb2.GetStatusRequest,
        context: "grpc.aio.ServicerContext[cluster_pb2.GetStatusRequest, cluster_pb2.GetStatusResponse]",
    ) -> cluster_pb2.GetStatusResponse:
        try:
            status = await self._controller.get_status()
            status.gateway.CopyFrom(gateway_status(self._metrics))
            return status
        except grpc.aio.AioRpcError as error:
            await context.abort(_public_code(error.code()), self._explain(error))

    async def GetModel(  # noqa: N802
        self,
        request: cluster_pb2.GetModelRequest,
        context: "grpc.aio.ServicerContext[cluster_pb2.GetModelRequest, cluster_pb2.GetModelResponse]",
    ) -> cluster_pb2.GetModelResponse:
        try:
            return await self._controller.get_model()
        except grpc.aio.AioRpcError as error:
            await context.abort(_public_code(error.code()), self._explain(error))

    async def WatchStatus(  # noqa: N802
        self, request: cluster_pb2.WatchStatusRequest, context: ClusterContext
    ) -> AsyncIterator[cluster_pb2.WatchStatusResponse]:
        try:
            async for response in self._controller.watch_status():
                yield response
        except grpc.aio.AioRpcError as error:
            await context.abort(_public_code(error.code()), self._explain(error))

    async def Scale(  # noqa: N802
        self, request: cluster_pb2.ScaleRequest, context: ClusterContext
    ) -> cluster_pb2.ScaleResponse:
        try:
            return await self._controller.scale(request)
        except grpc.aio.AioRpcError as error:
            await context.abort(_public_code(error.code()), self._explain(error))

    async def Drain(  # noqa: N802
        self, request: cluster_pb2.DrainRequest, context: ClusterContext
    ) -> cluster_pb2.DrainResponse:
        try:
            return await self._controller.drain(request)
        except grpc.aio.AioRpcError as error:
            await context.abort(_public_code(error.code()), self._explain(error))

    async def SwapDrafters(  # noqa: N802
        self, request: cluster_pb2.SwapDraftersRequest, context: ClusterContext
    ) -> cluster_pb2.SwapDraftersResponse:
        try:
            names = await self._fleet.swap_drafters(request.checkpoint)
        except (UnavailableError, EngineStoppedError) as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        except OutriderError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"checkpoint: {error}")
        return cluster_pb2.SwapDraftersResponse(replicas=names)

    def _explain(self, error: grpc.aio.AioRpcError) -> str:
        return f"the controller at {self._controller.address} answered: {error.details()}"


def _public_code(code: grpc.StatusCode) -> grpc.StatusCode:
    """The status for clients. The controller's UNAUTHENTICATED concerns the gateway's key, not the client's token."""
    return grpc.StatusCode.UNAVAILABLE if code is grpc.StatusCode.UNAUTHENTICATED else code
