"""What Client and AsyncClient share: their options, and the gateway in use."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import grpc

from outrider.cluster.api.calls import call_to_wire
from outrider.cluster.api.generation import GenerateCall
from outrider.cluster.client.call import explained
from outrider.cluster.client.resume import PATIENCE_S, GatewayLeftError, ResumableCall, is_of_gateway
from outrider.cluster.client.security import ClientSecurity
from outrider.proto import cluster_pb2_grpc, inference_pb2_grpc

C = TypeVar("C")  # the channel's class
DEFAULT_ADDRESS = "127.0.0.1:50051"
PLAIN = ClientSecurity()
ASK_TIMEOUT_S = 10.0
SWAP_TIMEOUT_S = 600.0  # loading a large module takes a while
OPTIONS = (
    ("grpc.max_receive_message_length", 64 * 2**20),
    ("grpc.enable_http_proxy", 0),
    ("grpc.keepalive_time_ms", 5_000),  # a gateway that is frozen or cut off is noticed while a call waits for it
    ("grpc.keepalive_timeout_ms", 4_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Also limits the connection handshake, which a frozen gateway never completes.
    ("grpc.min_reconnect_backoff_ms", 4_000),
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 4_000),
)


class BaseClient(ABC, Generic[C]):
    """A cluster, through its gateways."""

    def __init__(
        self,
        address: str | Sequence[str] = DEFAULT_ADDRESS,
        security: ClientSecurity = PLAIN,
        *,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """`address`: HOST:PORT of a gateway, or of several: a list, or one text with commas. A request whose gateway is
        lost continues at the next one that answers, unless there is none for `patience_s`; 0 never retries."""
        self._addresses = address.split(",") if isinstance(address, str) else list(address)
        self._now = 0  # index of the current one
        self._patience_s = patience_s
        self._metadata = security.metadata
        self._channels = [self._open(one, security) for one in self._addresses]

    @abstractmethod
    def _open(self, address: str, security: ClientSecurity) -> C:
        """A channel to a gateway, with OPTIONS."""

    @property
    def address(self) -> str:
        """The address of the current gateway."""
        return self._addresses[self._now]

    @property
    def _cluster(self) -> cluster_pb2_grpc.ClusterServiceStub:
        return cluster_pb2_grpc.ClusterServiceStub(self._channels[self._now])

    def _resumable(self, call: GenerateCall) -> ResumableCall:
        return ResumableCall(call, self._patience_s, time.monotonic(), gateways=len(self._addresses))

    def _generate(self, request: ResumableCall, until: float | None) -> Any:  # gRPC's call
        """Sends a request to the current gateway."""
        left = None if until is None else max(0.0, until - time.monotonic())
        inference = inference_pb2_grpc.InferenceServiceStub(self._channels[self._now])
        return inference.Generate(call_to_wire(request.call), timeout=left, metadata=(*self._metadata, *request.trace))

    def _leave(
        self, address: str, request: ResumableCall, error: grpc.RpcError | GatewayLeftError, until: float | None
    ) -> float:
        """Seconds to pause before the request is sent again, or raises the error for the caller.

        If the error is the gateway's, the next one becomes the current one, unless another call already left `address`.
        """
        left = None if until is None else until - time.monotonic()
        if not request.may_go_on(error, time.monotonic(), left, address):
            raise explained(error, address) from error
        pause_s = request.pause_s(error)
        if is_of_gateway(error) and address == self.address:
            self._now = (self._now + 1) % len(self._addresses)
        return pause_s if until is None else max(0.0, min(pause_s, until - time.monotonic()))
