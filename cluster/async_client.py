"""AsyncClient: what client.py's Client does, for an event loop."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Self

import grpc

from outrider.cluster import client_questions as questions
from outrider.cluster.client import ASK_TIMEOUT_S, DEFAULT_ADDRESS, OPTIONS, PLAIN, SWAP_TIMEOUT_S, within
from outrider.cluster.client_call import Collector, Messages, build_call, exception_of, explained
from outrider.cluster.client_questions import Question, T
from outrider.cluster.client_resume import PATIENCE_S, GatewayLeftError, ResumableCall
from outrider.cluster.client_security import ClientSecurity
from outrider.cluster.gateway import wire
from outrider.cluster.generation import Event, GenerateCall, Generation
from outrider.cluster.status import (
    ClusterStatus,
    Draining,
    ModelInfo,
    Scaling,
    status_from_wire,
)
from outrider.proto import cluster_pb2, cluster_pb2_grpc, inference_pb2_grpc
from outrider.workers.sampling_params import SamplingParams


class AsyncClient:
    """Client for an event loop; the loop that makes it is the one that uses it."""

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        security: ClientSecurity = PLAIN,
        *,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """`address`: HOST:PORT of a gateway. A request whose gateway is lost goes on at the next that answers there,
        unless nothing is heard for `patience_s`; 0 never asks again."""
        self.address = address
        self._patience_s = patience_s
        self._metadata = security.metadata
        self._channel = security.aio_channel(address, OPTIONS)
        self._inference = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._cluster = cluster_pb2_grpc.ClusterServiceStub(self._channel)

    async def generate(
        self,
        prompt: str | None = None,
        *,
        token_ids: Sequence[int] | None = None,
        messages: Messages | None = None,
        params: SamplingParams | None = None,
        request_id: str = "",
        traceparent: str = "",
        tracestate: str = "",
        timeout_s: float | None = None,
        **sampling: Any,  # SamplingParams' own fields
    ) -> Generation:
        """As Client.generate."""
        trace = (traceparent, tracestate)
        call = build_call(prompt, token_ids, messages, params, sampling, request_id, trace)
        collector = Collector(call.params.n)
        async for event in self._events(call, timeout_s):
            collector.add(event)
        return collector.result()

    def stream(
        self,
        prompt: str | None = None,
        *,
        token_ids: Sequence[int] | None = None,
        messages: Messages | None = None,
        params: SamplingParams | None = None,
        request_id: str = "",
        traceparent: str = "",
        tracestate: str = "",
        timeout_s: float | None = None,
        speculation_detail: bool = False,
        **sampling: Any,  # SamplingParams' own fields
    ) -> AsyncIterator[Event]:
        """As Client.stream."""
        trace = (traceparent, tracestate)
        call = build_call(prompt, token_ids, messages, params, sampling, request_id, trace, speculation_detail)
        return self._events(call, timeout_s)

    async def _events(self, call: GenerateCall, timeout_s: float | None) -> AsyncIterator[Event]:
        now = time.monotonic()
        request, until = ResumableCall(call, self._patience_s, now), None if timeout_s is None else now + timeout_s
        while True:
            try:
                async for event in self._heard(request, until):
                    yield event
                return
            except (grpc.aio.AioRpcError, GatewayLeftError) as error:
                if not request.may_go_on(error, time.monotonic()):
                    raise explained(error, self.address) from error
                pause_s = request.pause_s(error)
            await asyncio.sleep(within(pause_s, until))

    async def _heard(self, request: ResumableCall, until: float | None) -> AsyncIterator[Event]:
        """As Client._heard."""
        left = None if until is None else max(0.0, until - time.monotonic())
        metadata = (*self._metadata, *request.trace)
        responses = self._inference.Generate(wire.call_to_wire(request.call), timeout=left, metadata=metadata)
        try:
            async for response in responses:
                event = request.hear(wire.event_from_wire(response), time.monotonic())
                if event is not None:
                    yield event
        finally:
            responses.cancel()

    async def status(self, timeout_s: float = ASK_TIMEOUT_S) -> ClusterStatus:
        return await self._ask(questions.status(), timeout_s)

    async def model(self, timeout_s: float = ASK_TIMEOUT_S) -> ModelInfo:
        return await self._ask(questions.model(), timeout_s)

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

    async def scale(self, replicas: int, timeout_s: float = ASK_TIMEOUT_S) -> Scaling:
        """As Client.scale."""
        return await self._ask(questions.scale(replicas), timeout_s)

    async def drain(self, replica: str, timeout_s: float = ASK_TIMEOUT_S) -> Draining:
        """As Client.drain."""
        return await self._ask(questions.drain(replica), timeout_s)

    async def swap_drafter(self, checkpoint: str, timeout_s: float = SWAP_TIMEOUT_S) -> list[str]:
        """As Client.swap_drafter."""
        return await self._ask(questions.swap_drafter(checkpoint), timeout_s)

    async def _ask(self, question: Question[T], timeout_s: float) -> T:
        call = getattr(self._cluster, question.method)
        try:
            return question.read(await call(question.request, timeout=timeout_s, metadata=self._metadata))
        except grpc.aio.AioRpcError as error:
            raise exception_of(error, self.address) from error

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
