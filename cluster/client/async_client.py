"""AsyncClient: the asyncio version of client.py's Client."""

import asyncio
import time
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

import grpc

from outrider.cluster.api.collector import Collector
from outrider.cluster.api.events import event_from_wire
from outrider.cluster.api.generation import Event, GenerateCall, Generation
from outrider.cluster.api.status import ClusterStatus, Draining, ModelInfo, Scaling, status_from_wire
from outrider.cluster.client import unary_calls
from outrider.cluster.client.base import CALL_TIMEOUT_S, OPTIONS, SWAP_TIMEOUT_S, BaseClient
from outrider.cluster.client.call import exception_of, make_call
from outrider.cluster.client.resume import GatewayLostError, ResumableCall
from outrider.cluster.client.security import ClientSecurity
from outrider.cluster.client.silence import SILENCE_S
from outrider.cluster.client.unary_calls import T, UnaryCall
from outrider.proto import cluster_pb2
from outrider.workers.types.parameters import parameters_of


class AsyncClient(BaseClient[grpc.aio.Channel]):
    """Client for asyncio. Use it from the event loop that creates it."""

    def _open(self, address: str, security: ClientSecurity) -> grpc.aio.Channel:
        return security.aio_channel(address, OPTIONS)

    @parameters_of(make_call)
    async def generate(self, *prompt: Any, **options: Any) -> Generation:
        """As Client.generate."""
        call, timeout_s = make_call(*prompt, **options)
        collector = Collector(call.params.n)
        async for event in self._events(call, timeout_s):
            collector.add(event)
        return collector.result()

    @parameters_of(make_call)
    def stream(self, *prompt: Any, **options: Any) -> AsyncIterator[Event]:
        """As Client.stream."""
        call, timeout_s = make_call(*prompt, **options)
        return self._events(call, timeout_s)

    async def _events(self, call: GenerateCall, timeout_s: float | None) -> AsyncIterator[Event]:
        request = self._resumable(call)
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            address = self.address
            try:
                async for event in self._received(request, until):
                    yield event
                return
            except (grpc.aio.AioRpcError, GatewayLostError) as error:
                if request.finished:
                    return
                pause_s = self._fail_over(address, request, error, until)
            await asyncio.sleep(pause_s)

    async def _received(self, request: ResumableCall, until: float | None) -> AsyncIterator[Event]:
        """As Client._received."""
        responses = self._generate(request, until)
        silence_s = None  # until the first heartbeat: an older gateway has none
        try:
            while True:
                async with asyncio.timeout(silence_s):
                    response = await responses.read()
                if response is grpc.aio.EOF:
                    return
                if response.HasField("heartbeat"):
                    silence_s = SILENCE_S
                event = request.receive(event_from_wire(response), time.monotonic())
                if event is not None:
                    yield event
        except TimeoutError:
            raise GatewayLostError.silent() from None
        finally:
            responses.cancel()

    async def status(self, timeout_s: float = CALL_TIMEOUT_S) -> ClusterStatus:
        return await self._call(unary_calls.status(), timeout_s)

    async def model(self, timeout_s: float = CALL_TIMEOUT_S) -> ModelInfo:
        return await self._call(unary_calls.model(), timeout_s)

    async def watch_status(self) -> AsyncIterator[ClusterStatus]:
        """As Client.watch_status."""
        responses = self._cluster.WatchStatus(cluster_pb2.WatchStatusRequest(), metadata=self._metadata)
        try:
            async for response in responses:
                yield status_from_wire(response.status)
        except grpc.aio.AioRpcError as error:
            raise exception_of(error, self.address) from error
        finally:
            responses.cancel()

    async def scale(self, replicas: int, timeout_s: float = CALL_TIMEOUT_S) -> Scaling:
        """As Client.scale."""
        return await self._call(unary_calls.scale(replicas), timeout_s)

    async def drain(self, replica: str, timeout_s: float = CALL_TIMEOUT_S) -> Draining:
        """As Client.drain."""
        return await self._call(unary_calls.drain(replica), timeout_s)

    async def swap_drafter(self, checkpoint: str, timeout_s: float = SWAP_TIMEOUT_S) -> list[str]:
        """As Client.swap_drafter."""
        return await self._call(unary_calls.swap_drafter(checkpoint), timeout_s)

    async def _call(self, unary: UnaryCall[T], timeout_s: float) -> T:
        call = getattr(self._cluster, unary.method)
        try:
            return unary.read(await call(unary.request, timeout=timeout_s, metadata=self._metadata))
        except grpc.aio.AioRpcError as error:
            raise exception_of(error, self.address) from error

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
