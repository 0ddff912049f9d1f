"""The base class of Client and AsyncClient: channels to gateways, and failover between them."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import grpc

from outrider.cluster.api.calls import call_to_wire
from outrider.cluster.api.generation import GenerateCall
from outrider.cluster.client.call import explained
from outrider.cluster.client.resume import PATIENCE_S, GatewayLostError, ResumableCall, is_gateway_error
from outrider.cluster.client.security import ClientSecurity
from outrider.proto import cluster_pb2_grpc, inference_pb2_grpc

C = TypeVar("C")  # the channel's class
DEFAULT_ADDRESS = "127.0.0.1:50051"
PLAIN = ClientSecurity()
CALL_TIMEOUT_S = 10.0
SWAP_TIMEOUT_S = 600.0  # loading a large MTP module takes minutes
OPTIONS = (
    ("grpc.max_receive_message_length", 64 * 2**20),
    ("grpc.enable_http_proxy", 0),
    ("grpc.keepalive_time_ms", 5_000),  # detects a frozen or unreachable gateway during a call
    ("grpc.keepalive_timeout_ms", 4_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Also limits the connection handshake, which a frozen gateway never completes.
    ("grpc.min_reconnect_backoff_ms", 4_000),
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 4_000),
)


class BaseClient(ABC, Generic[C]):
    """Connects to the gateways of a cluster."""

    def __init__(
        self,
        address: str | Sequence[str] = DEFAULT_ADDRESS,
        security: ClientSecurity = PLAIN,
        *,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """`address`: HOST:PORT of one gateway, or of several as a list or separated by commas.

        A request whose gateway is lost resumes at the next gateway that answers. It fails if none answers within
        `patience_s`; 0 disables retries.
        """
        self._addresses = address.split(",") if isinstance(address, str) else list(address)
        self._current = 0  # index of the current gateway
        self._patience_s = patience_s
        self._metadata = security.metadata
        self._channels = [self._open(one, security) for one in self._addresses]

    @abstractmethod
    def _open(self, address: str, security: ClientSecurity) -> C:
        """A channel to a gateway, with OPTIONS."""

    @property
    def address(self) -> str:
        """The address of the current gateway."""
        return self._addresses[self._current]

    @property
    def _cluster(self) -> cluster_pb2_grpc.ClusterServiceStub:
        return cluster_pb2_grpc.ClusterServiceStub(self._channels[self._current])

    def _resumable(self, call: GenerateCall) -> ResumableCall:
        return ResumableCall(call, self._patience_s, time.monotonic(), gateways=len(self._addresses))

    def _generate(self, request: ResumableCall, until: float | None) -> Any:  # gRPC's call
        """Sends a request to the current gateway."""
        left = None if until is None else max(0.0, until - time.monotonic())
        inference = inference_pb2_grpc.InferenceServiceStub(self._channels[self._current])
        return inference.Generate(call_to_wire(request.call), timeout=left, metadata=(*self._metadata, *request.trace))

    def _fail_over(
        self, address: str, request: ResumableCall, error: grpc.RpcError | GatewayLostError, until: float | None
    ) -> float:
        """Seconds to wait before the retry. Raises the error for the caller if there is no retry.

        After a gateway error the next gateway becomes the current one, unless another call has already switched.
        """
        left = None if until is None else until - time.monotonic()
        if not request.may_retry(error, time.monotonic(), left, address):
            raise explained(error, address) from error
        pause_s = request.pause_s(error)
        if is_gateway_error(error) and address == self.address:
            self._current = (self._current + 1) % len(self._addresses)
        return pause_s if until is None else max(0.0, min(pause_s, until - time.monotonic()))
