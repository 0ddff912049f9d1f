"""Calls to every method that a server offers, without knowing what it says: what comes back, if anything."""

import asyncio
from collections.abc import Iterable

import grpc
import psutil
from google.protobuf.descriptor import FileDescriptor

from outrider.cluster.client.base import PLAIN
from outrider.cluster.client.security import ClientSecurity
from outrider.proto import cluster_pb2, inference_pb2, worker_pb2

Metadata = tuple[tuple[str, str], ...]
_TIMEOUT_S = 5.0
_GRPCS_LOOPBACK = "::ffff:127.0.0.1"  # how gRPC listens on 127.0.0.1; torch and Ray say it in IPv4
REFLECTION = tuple(f"/grpc.reflection.{v}.ServerReflection/ServerReflectionInfo" for v in ("v1", "v1alpha"))


def methods(file: FileDescriptor, service: str) -> tuple[str, ...]:
    found = file.services_by_name[service]
    return tuple(f"/{found.full_name}/{method.name}" for method in found.methods)


GATEWAY = (
    *methods(inference_pb2.DESCRIPTOR, "InferenceService"),
    *methods(cluster_pb2.DESCRIPTOR, "ClusterService"),
    *REFLECTION,
)
CONTROLLER = methods(cluster_pb2.DESCRIPTOR, "ControllerService")
LEADER = methods(worker_pb2.DESCRIPTOR, "EngineService")


async def call(address: str, method: str, security: ClientSecurity, metadata: Metadata = ()) -> grpc.StatusCode:
    """The status of a call with one empty message. AssertionError if it gets as much as a byte of an answer."""
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with security.aio_channel(address, options) as channel:
        answers = channel.unary_stream(method)(b"", timeout=_TIMEOUT_S, metadata=(*security.metadata, *metadata))
        try:
            async for answer in answers:
                raise AssertionError(f"{method} answered {len(answer)} bytes")
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


async def statuses(
    address: str, names: Iterable[str], security: ClientSecurity, metadata: Metadata = ()
) -> dict[str, grpc.StatusCode]:
    return {name: await call(address, name, security, metadata) for name in names}


def assert_closed_to_strangers(pid: int, names: Iterable[str]) -> None:
    """The process offers these methods on some address of its own, and answers none of them without a key."""
    sockets = psutil.Process(pid).net_connections("tcp")
    ports = [one.laddr.port for one in sockets if one.status == psutil.CONN_LISTEN and one.laddr.ip == _GRPCS_LOOPBACK]
    answers = [asyncio.run(statuses(f"127.0.0.1:{port}", names, PLAIN)) for port in ports]
    rays_own = {grpc.StatusCode.UNIMPLEMENTED}  # which knows none of these
    got = [one for one in answers if set(one.values()) != rays_own]

    assert got != []
    assert all(set(one.values()) == {grpc.StatusCode.UNAUTHENTICATED} for one in got), got
