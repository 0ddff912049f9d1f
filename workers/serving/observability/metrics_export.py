"""Histograms of seconds that go to an OpenTelemetry collector, if one is configured.

Knows nothing of OpenTelemetry's packages: open_telemetry_metrics.py does, and is imported only with a collector.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from outrider.workers.types.errors import OutriderError


@dataclass(frozen=True, slots=True)
class SecondsHistogram:
    """`bounds`: the upper bounds of its buckets, ascending."""

    name: str
    text: str
    bounds: tuple[float, ...]


class MetricsExport(Protocol):
    """Where observations go. Every method may be called from any thread."""

    def record(self, name: str, seconds: float, attributes: Mapping[str, str]) -> None: ...

    def close(self) -> None:
        """Sends what was recorded, within seconds."""
        ...


class NoMetricsExport:
    """Observations go nowhere."""

    def record(self, name: str, seconds: float, attributes: Mapping[str, str]) -> None:
        """Does nothing: no collector is configured."""

    def close(self) -> None:
        """Nothing was recorded."""


def open_metrics_export(endpoint: str, service: str, histograms: Sequence[SecondsHistogram]) -> MetricsExport:
    """Histograms of `service`, sent to `endpoint`; nowhere if that is "". OutriderError if they cannot be."""
    if not endpoint:
        return NoMetricsExport()
    try:
        from outrider.workers.serving.observability.open_telemetry_metrics import OpenTelemetryMetrics
    except ImportError as error:
        raise OutriderError(
            f"metrics to {endpoint} need OpenTelemetry's exporter, which is not installed: pip install 'outrider[otel]'"
        ) from error
    return OpenTelemetryMetrics(endpoint, service, histograms)
