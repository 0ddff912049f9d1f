"""gRPC health and reflection. Service "" is the gateway's liveness, outrider.v1.InferenceService its readiness."""

from collections.abc import Sequence

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from outrider.proto import cluster_pb2, inference_pb2

INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name
CLUSTER = cluster_pb2.DESCRIPTOR.services_by_name["ClusterService"].full_name
_REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
REFLECTIONS = (reflection.SERVICE_NAME, _REFLECTION_V1)


class Health:
    """grpc.health.v1: one state, which several servers can report."""

    def __init__(self) -> None:
        self._servicer = health.aio.HealthServicer()

    def add_to(self, server: grpc.aio.Server) -> None:
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def set_ready(self, ready: bool) -> None:
        """Sets whether the gateway accepts requests."""
        serving = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        await self._servicer.set(INFERENCE, serving)


def add_reflection(server: grpc.aio.Server) -> None:
    """Adds v1alpha, and v1, which grpcio-reflection lacks: the same messages under another service name."""
    names: Sequence[str] = (INFERENCE, CLUSTER, health.SERVICE_NAME, *REFLECTIONS)
    reflection.enable_server_reflection(names, server)
    servicer = reflection.aio.ReflectionServicer(names)
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    handler = grpc.method_handlers_generic_handler(_REFLECTION_V1, {"ServerReflectionInfo": method})
    server.add_generic_rpc_handlers((handler,))
