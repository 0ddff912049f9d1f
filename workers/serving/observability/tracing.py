"""Tracing: sends spans to an OpenTelemetry collector if one is configured, and does nothing otherwise.

OpenTelemetry's packages are used in open_telemetry.py only, which is imported only if a collector is configured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from outrider.workers.types.errors import OutriderError
from outrider.workers.types.requests.trace_context import TraceContext

Attributes = Mapping[str, str | bool | int | float | Sequence[str]]


class Span(Protocol):
    """A span of a trace. `context` is the parent context for its child spans."""

    @property
    def context(self) -> TraceContext: ...

    def end(self, attributes: Attributes, *, error: str = "", at_ns: int | None = None) -> None: ...


class Tracing(Protocol):
    """Creates spans. Times are nanoseconds since 1970, None for now. Thread-safe."""

    def begin(self, name: str, parent: TraceContext | None, *, inside: bool = False, at_ns: int | None = None) -> Span:
        """A child of `parent`, or the root of a new trace. `inside`: an internal span of the same process."""
        ...

    def close(self) -> None:
        """Sends the spans that have ended; takes at most a few seconds."""
        ...


@dataclass(frozen=True, slots=True)
class _Unrecorded:
    context: TraceContext

    def end(self, attributes: Attributes, *, error: str = "", at_ns: int | None = None) -> None:
        """Does nothing: tracing is off."""


class NoTracing:
    """Tracing that is off: records no spans, and passes a caller's trace context on unchanged."""

    def begin(self, name: str, parent: TraceContext | None, *, inside: bool = False, at_ns: int | None = None) -> Span:
        return _Unrecorded(parent or TraceContext.new())

    def close(self) -> None:
        """Does nothing."""


def resolve_endpoint(option: str | None, environment: Mapping[str, str], signal: str = "TRACES") -> str:
    """The URL of the collector for `signal` (TRACES or METRICS): `option`, else from OpenTelemetry's variables.

    "" for none. `option` enables traces whatever the variables are; OTEL_METRICS_EXPORTER=none always disables metrics.
    ValueError names the setting that is not valid.
    """
    variables = (f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    named = {"otlp_endpoint": option, **{name: environment.get(name) for name in variables}}
    source, endpoint = next(((name, value) for name, value in named.items() if value), ("", ""))
    off = not option and environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    other = environment.get(f"OTEL_{signal}_EXPORTER", "otlp") != "otlp" and not (option and signal == "TRACES")
    if not endpoint or off or other:
        return ""
    if not endpoint.startswith(("http://", "https://")):
        raise ValueError(f"{source} must be http://HOST:PORT or https://HOST:PORT, got {endpoint!r}")
    protocols = (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    protocol = next((environment[name] for name in protocols if environment.get(name)), "grpc")
    if protocol != "grpc":
        raise ValueError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL must be grpc, the only protocol supported here, got {protocol!r}"
        )
    return endpoint


def open_tracing(endpoint: str, service: str) -> Tracing:
    """Tracing of `service` to `endpoint`; off if that is "". OutriderError if OpenTelemetry is not installed."""
    if not endpoint:
        return NoTracing()
    try:
        from outrider.workers.serving.observability.open_telemetry import OpenTelemetry
    except ImportError as error:
        raise OutriderError(
            f"spans to {endpoint} need OpenTelemetry's exporter, which is not installed: pip install 'outrider[otel]'"
        ) from error
    return OpenTelemetry(endpoint, service)
