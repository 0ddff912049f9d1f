"""A collector of spans and metrics: OpenTelemetry's own gRPC services, in this process."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """`spans` by service's name, as they came; the last of each of `metrics` by its name."""

    def __init__(self) -> None:
        self.address = ""
        self.metrics: dict[str, Metric] = {}
        self.spans: list[tuple[str, Span]] = []
        self._heard = threading.Condition()

    def Export(self, request, context):  # noqa: ANN001, ANN201, N802
        with self._heard:
            for resource in request.resource_spans:
                service = attributes(resource.resource)["service.name"]
                self.spans += [(service, span) for scope in resource.scope_spans for span in scope.spans]
            self._heard.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def named(self, name: str) -> list[Span]:
        return [span for _, span in self.spans if span.name == name]

    def wait_for(self, name: str, count: int = 1) -> list[Span]:
        with self._heard:
            assert self._heard.wait_for(lambda: len(self.named(name)) >= count, timeout=60), self.spans
        return self.named(name)


class Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
    """The part of a collector that gets metrics."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def Export(self, request, context):  # noqa: ANN001, ANN201, N802
        for resource in request.resource_metrics:
            assert attributes(resource.resource)["service.instance.id"]
            for scope in resource.scope_metrics:
                self._collector.metrics |= {one.name: one for one in scope.metrics}
        return metrics_service_pb2.ExportMetricsServiceResponse()


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Metrics(collector), server)
    collector.address = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None)


def attributes(of: Any) -> dict[str, Any]:
    """A span's or a resource's."""
    return {one.key: _value(one.value) for one in of.attributes}


def _value(value: Any) -> Any:
    which = value.WhichOneof("value")
    return [_value(one) for one in value.array_value.values] if which == "array_value" else getattr(value, which)
