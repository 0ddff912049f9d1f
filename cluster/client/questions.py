"""Unary calls shared by Client and AsyncClient: method, request, and how the response is read."""

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
class Question(Generic[T]):
    """One unary call of ClusterService."""

    method: str
    request: Any  # its message
    read: Callable[[Any], T]


def status() -> Question[ClusterStatus]:
    return Question("GetStatus", pb.GetStatusRequest(), status_from_wire)


def model() -> Question[ModelInfo]:
    return Question("GetModel", pb.GetModelRequest(), model_from_wire)


def scale(replicas: int) -> Question[Scaling]:
    """InvalidRequestError if that is no number of replicas."""
    if isinstance(replicas, bool) or not isinstance(replicas, int) or not 0 <= replicas < 2**32:
        raise InvalidRequestError(f"replicas must be an integer of at least 0, got {replicas!r}")
    return Question("Scale", pb.ScaleRequest(replicas=replicas), scaling_from_wire)


def drain(replica: str) -> Question[Draining]:
    return Question("Drain", pb.DrainRequest(replica=replica), draining_from_wire)


def swap_drafter(checkpoint: str) -> Question[list[str]]:
    request = pb.SwapDraftersRequest(checkpoint=checkpoint)
    return Question("SwapDrafters", request, lambda response: list(response.replicas))
