"""Client and AsyncClient: a cluster's gRPC API with types. What goes wrong is one of cluster/errors.py's exceptions."""

from collections.abc import AsyncIterator, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import grpc

from outrider.cluster.client_call import Collector, Messages, build_call, checked, exception_of
from outrider.cluster.client_security import ClientSecurity
from outrider.cluster.gateway import wire
from outrider.cluster.generation import Event, GenerateCall, Generation
from outrider.cluster.status import ClusterStatus, ModelInfo, model_from_wire, status_from_wire
from outrider.proto import cluster_pb2, cluster_pb2_grpc, inference_pb2_grpc
from outrider.workers.sampling_params import SamplingParams

DEFAULT_ADDRESS = "127.0.0.1:50051"
PLAIN = ClientSecurity()
_ASK_TIMEOUT_S = 10.0
_OPTIONS = (("grpc.max_receive_message_length", 64 * 2**20), ("grpc.enable_http_proxy", 0))


class Client:
    """A cluster, through one of its gateways. Safe to use from several threads; a context manager."""

    def __init__(self, address: str = DEFAULT_ADDRESS, security: ClientSecurity = PLAIN) -> None:
        """`address`: HOST:PORT of a gateway."""
        self.address = address
        self._metadata = security.metadata
        self._channel = security.channel(address, _OPTIONS)
        self._inference = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._cluster = cluster_pb2_grpc.ClusterServiceStub(self._channel)

    def generate(
        self,
        prompt: str | None = None,
        *,
        token_ids: Sequence[int] | None = None,
        messages: Messages | None = None,
        params: SamplingParams | None = None,
        request_id: str = "",
        timeout_s: float | None = None,
        **sampling: Any,  # SamplingParams' own fields
    ) -> Generation:
        """The whole answer. Sampling is `params`, or SamplingParams' fields as keywords (max_tokens then defaults to
        the model's length)."""
        call = build_call(
            prompt, token_ids, messages, params, sampling, request_id=request_id, speculation_detail=False
        )
        collector = Collector(call.params.n)
        for event in self._events(call, timeout_s):
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
        timeout_s: float | None = None,
        speculation_detail: bool = False,
        **sampling: Any,  # SamplingParams' own fields
    ) -> Iterator[Event]:
        """The events as they come: Accepted, Outputs, a Finished per output. Closing the iterator cancels."""
        call = build_call(
            prompt, token_ids, messages, params, sampling, request_id=request_id, speculation_detail=speculation_detail
        )
        return self._events(call, timeout_s)

    def _events(self, call: GenerateCall, timeout_s: float | None) -> Iterator[Event]:
        responses = self._inference.Generate(wire.call_to_wire(call), timeout=timeout_s, metadata=self._metadata)
        try:
            for response in responses:
                event = checked(wire.event_from_wire(response))
                if event is not None:
                    yield event
        except grpc.RpcError as error:
            raise exception_of(error, self.address) from error
        finally:
            responses.cancel()

    def status(self, timeout_s: float = _ASK_TIMEOUT_S) -> ClusterStatus:
        try:
            response = self._cluster.GetStatus(
                cluster_pb2.GetStatusRequest(), timeout=timeout_s, metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise exception_of(error, self.address) from error
        return status_from_wire(response)

    def model(self, timeout_s: float = _ASK_TIMEOUT_S) -> ModelInfo:
        try:
            response = self._cluster.GetModel(cluster_pb2.GetModelRequest(), timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise exception_of(error, self.address) from error
        return model_from_wire(response)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient:
    """Client for an event loop; the loop that makes it is the one that uses it."""

    def __init__(self, address: str = DEFAULT_ADDRESS, security: ClientSecurity = PLAIN) -> None:
        """`address`: HOST:PORT of a gateway."""
        self.address = address
        self._metadata = security.metadata
        self._channel = security.aio_channel(address, _OPTIONS)
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
        timeout_s: float | None = None,
        **sampling: Any,  # SamplingParams' own fields
    ) -> Generation:
        """As Client.generate."""
        call = build_call(
            prompt, token_ids, messages, params, sampling, request_id=request_id, speculation_detail=False
        )
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
        timeout_s: float | None = None,
        speculation_detail: bool = False,
        **sampling: Any,  # SamplingParams' own fields
    ) -> AsyncIterator[Event]:
        """As Client.stream."""
        call = build_call(
            prompt, token_ids, messages, params, sampling, request_id=request_id, speculation_detail=speculation_detail
        )
        return self._events(call, timeout_s)

    async def _events(self, call: GenerateCall, timeout_s: float | None) -> AsyncIterator[Event]:
        responses = self._inference.Generate(wire.call_to_wire(call), timeout=timeout_s, metadata=self._metadata)
        try:
            async for response in responses:
                event = checked(wire.event_from_wire(response))
                if event is not None:
                    yield event
        except grpc.aio.AioRpcError as error:
            raise exception_of(error, self.address) from error
        finally:
            responses.cancel()

    async def status(self, timeout_s: float = _ASK_TIMEOUT_S) -> ClusterStatus:
        try:
            response = await self._cluster.GetStatus(
                cluster_pb2.GetStatusRequest(), timeout=timeout_s, metadata=self._metadata
            )
        except grpc.aio.AioRpcError as error:
            raise exception_of(error, self.address) from error
        return status_from_wire(response)

    async def model(self, timeout_s: float = _ASK_TIMEOUT_S) -> ModelInfo:
        try:
            response = await self._cluster.GetModel(
                cluster_pb2.GetModelRequest(), timeout=timeout_s, metadata=self._metadata
            )
        except grpc.aio.AioRpcError as error:
            raise exception_of(error, self.address) from error
        return model_from_wire(response)

    async def close(self) -> None:
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
