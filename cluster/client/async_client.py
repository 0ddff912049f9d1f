"""AsyncClient: the asyncio version of client.py's Client."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import grpc

from outrider.cluster.api.calls import call_to_wire
from outrider.cluster.api.chat_shapes import Messages, ToolChoice, ToolsGiven
from outrider.cluster.api.collector import Collector
from outrider.cluster.api.events import event_from_wire
from outrider.cluster.api.generation import Event, GenerateCall, Generation
from outrider.cluster.api.status import ClusterStatus, Draining, ModelInfo, Scaling, status_from_wire
from outrider.cluster.client import questions
from outrider.cluster.client.call import build_call, chat_options, exception_of, explained
from outrider.cluster.client.client import (
    ASK_TIMEOUT_S,
    DEFAULT_ADDRESS,
    OPTIONS,
    PLAIN,
    SWAP_TIMEOUT_S,
    addresses_of,
    left_s,
    within,
)
from outrider.cluster.client.questions import Question, T
from outrider.cluster.client.resume import PATIENCE_S, GatewayLeftError, ResumableCall
from outrider.cluster.client.security import ClientSecurity
from outrider.cluster.client.silence import SILENCE_S
from outrider.proto import cluster_pb2, cluster_pb2_grpc, inference_pb2_grpc
from outrider.workers.types.sampling_params import SamplingParams


class AsyncClient:
    """Client for asyncio. Use it from the event loop that creates it."""

    def __init__(
        self,
        address: str | Sequence[str] = DEFAULT_ADDRESS,
        security: ClientSecurity = PLAIN,
        *,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """As Client."""
        self._addresses = addresses_of(address)
        self._now = 0  # index of the current one
        self._patience_s = patience_s
        self._metadata = security.metadata
        self._channels = [security.aio_channel(one, OPTIONS) for one in self._addresses]

    @property
    def address(self) -> str:
        """The address of the current gateway."""
        return self._addresses[self._now]

    def _leave(self, address: str) -> None:
        """As Client._leave."""
        if address == self.address:
            self._now = (self._now + 1) % len(self._addresses)

    async def generate(
        self,
        prompt: str | None = None,
        *,
        token_ids: Sequence[int] | None = None,
        messages: Messages | None = None,
        tools: ToolsGiven | None = None,
        tool_choice: ToolChoice = "auto",
        parallel_tool_calls: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        auto_reasoning: bool = False,
        params: SamplingParams | None = None,
        request_id: str = "",
        traceparent: str = "",
        tracestate: str = "",
        timeout_s: float | None = None,
        **sampling: Any,  # SamplingParams' own fields
    ) -> Generation:
        """As Client.generate."""
        trace = (traceparent, tracestate)
        chat = chat_options(tools, tool_choice, parallel_tool_calls, chat_template_kwargs, auto_reasoning)
        call = build_call(prompt, token_ids, messages, params, sampling, request_id, trace, chat=chat)
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
        tools: ToolsGiven | None = None,
        tool_choice: ToolChoice = "auto",
        parallel_tool_calls: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        auto_reasoning: bool = False,
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
        chat = chat_options(tools, tool_choice, parallel_tool_calls, chat_template_kwargs, auto_reasoning)
        call = build_call(prompt, token_ids, messages, params, sampling, request_id, trace, speculation_detail, chat)
        return self._events(call, timeout_s)

    async def _events(self, call: GenerateCall, timeout_s: float | None) -> AsyncIterator[Event]:
        now = time.monotonic()
        request = ResumableCall(call, self._patience_s, now, gateways=len(self._addresses))
        until = None if timeout_s is None else now + timeout_s
        while True:
            address = self.address
            try:
                async for event in self._heard(request, until):
                    yield event
                return
            except (grpc.aio.AioRpcError, GatewayLeftError) as error:
                if request.finished:
                    return
                if not request.may_go_on(error, time.monotonic(), left_s(until)):
                    raise explained(error, address) from error
                pause_s = request.pause_s(error)
            self._leave(address)
            await asyncio.sleep(within(pause_s, until))

    async def _heard(self, request: ResumableCall, until: float | None) -> AsyncIterator[Event]:
        """As Client._heard."""
        left = None if until is None else max(0.0, until - time.monotonic())
        metadata = (*self._metadata, *request.trace)
        inference = inference_pb2_grpc.InferenceServiceStub(self._channels[self._now])
        responses = inference.Generate(call_to_wire(request.call), timeout=left, metadata=metadata)
        silence_s = None  # until the first heartbeat: an older gateway has none
        try:
            while True:
                async with asyncio.timeout(silence_s):
                    response = await responses.read()
                if response is grpc.aio.EOF:
                    return
                if response.HasField("heartbeat"):
                    silence_s = SILENCE_S
                event = request.hear(event_from_wire(response), time.monotonic())
                if event is not None:
                    yield event
        except TimeoutError:
            raise GatewayLeftError.silent() from None
        finally:
            responses.cancel()

    async def status(self, timeout_s: float = ASK_TIMEOUT_S) -> ClusterStatus:
        return await self._ask(questions.status(), timeout_s)

    async def model(self, timeout_s: float = ASK_TIMEOUT_S) -> ModelInfo:
        return await self._ask(questions.model(), timeout_s)

    async def watch_status(self) -> AsyncIterator[ClusterStatus]:
        """As Client.watch_status."""
        responses = self._cluster().WatchStatus(cluster_pb2.WatchStatusRequest(), metadata=self._metadata)
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
        call = getattr(self._cluster(), question.method)
        try:
            return question.read(await call(question.request, timeout=timeout_s, metadata=self._metadata))
        except grpc.aio.AioRpcError as error:
            raise exception_of(error, self.address) from error

    def _cluster(self) -> cluster_pb2_grpc.ClusterServiceStub:
        return cluster_pb2_grpc.ClusterServiceStub(self._channels[self._now])

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
