"""Histograms by OpenTelemetry's SDK, sent by OTLP over gRPC every minute, or as OTEL_METRIC_EXPORT_INTERVAL says."""

import threading
import uuid
from collections.abc import Mapping, Sequence

from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, Resource

from outrider.workers.serving.observability.metrics_export import SecondsHistogram
from outrider.workers.serving.observability.open_telemetry import resource_of

_LAST_METRICS_S = 3.0


class OpenTelemetryMetrics:
    """Implements MetricsExport. A thread of the SDK sends the metrics."""

    def __init__(self, endpoint: str, service: str, histograms: Sequence[SecondsHistogram]) -> None:
        """`service` is this process's name, unless OpenTelemetry's variables give it another."""
        # Several gateways send the same metrics: a collector tells them apart by the instance.
        instance = Resource({SERVICE_INSTANCE_ID: str(uuid.uuid4())})
        reader = PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=endpoint))
        resource = instance.merge(resource_of(service))
        self._provider = MeterProvider(metric_readers=[reader], resource=resource, shutdown_on_exit=False)
        meter = self._provider.get_meter("outrider")
        self._histograms = {
            one.name: meter.create_histogram(one.name, "s", one.text, explicit_bucket_boundaries_advisory=one.bounds)
            for one in histograms
        }

    def record(self, name: str, seconds: float, attributes: Mapping[str, str]) -> None:
        self._histograms[name].record(seconds, dict(attributes))

    def close(self) -> None:
        """Does not wait for a collector that does not answer."""
        last = threading.Thread(target=self._provider.shutdown, name="last-metrics", daemon=True)
        last.start()
        last.join(_LAST_METRICS_S)
