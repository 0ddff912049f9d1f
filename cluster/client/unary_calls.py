"""The unary calls of Client and AsyncClient: method, request message, and conversion of the response."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from outrider.cluster.api.errors import InvalidRequestError
from outrider.cluster.api.status import (
    ClusterStatus,
    Draining,
    ModelInfo,
    Scaling,
    draining_from_wire,
    model_from_wire,
    scaling_from_wire,
    status_from_wire,
)
from outrider.proto import cluster_pb2 as pb

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class UnaryCall(Generic[T]):
    """One unary call of ClusterService."""

    method: str
    request: Any  # its protobuf message
    read: Callable[[Any], T]


def status() -> UnaryCall[ClusterStatus]:
    return UnaryCall("GetStatus", pb.GetStatusRequest(), status_from_wire)


def model() -> UnaryCall[ModelInfo]:
    return UnaryCall("GetModel", pb.GetModelRequest(), model_from_wire)


def scale(replicas: int) -> UnaryCall[Scaling]:
    """Raises InvalidRequestError if `replicas` is not a valid number."""
    if isinstance(replicas, bool) or not isinstance(replicas, int) or not 0 <= replicas < 2**32:
        raise InvalidRequestError(f"replicas must be an integer of at least 0, got {replicas!r}")
    return UnaryCall("Scale", pb.ScaleRequest(replicas=replicas), scaling_from_wire)


def drain(replica: str) -> UnaryCall[Draining]:
    return UnaryCall("Drain", pb.DrainRequest(replica=replica), draining_from_wire)


def swap_drafter(checkpoint: str) -> UnaryCall[list[str]]:
    request = pb.SwapDraftersRequest(checkpoint=checkpoint)
    return UnaryCall("SwapDrafters", request, lambda response: list(response.replicas))
