"""Spans: what is told to an OpenTelemetry collector where one is configured, and nothing where none is.

Knows nothing of OpenTelemetry's packages: open_telemetry.py does, and is imported only where spans go somewhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from outrider.workers.types.errors import OutriderError
from outrider.workers.types.trace_context import TraceContext

Attributes = Mapping[str, str | bool | int | float | Sequence[str]]


class Span(Protocol):
    """Something that takes time. `context` is its place in the trace, for what happens in it."""

    @property
    def context(self) -> TraceContext: ...

    def end(self, attributes: Attributes, *, error: str = "", at_ns: int | None = None) -> None: ...


class Tracing(Protocol):
    """Where spans go. Times are nanoseconds since 1970; None: now. Every method may be called from any thread."""

    def begin(self, name: str, parent: TraceContext | None, *, inside: bool = False, at_ns: int | None = None) -> Span:
        """A child of `parent` (`inside`: a part of that one, in the same process), or the first of a new trace."""
        ...

    def close(self) -> None:
        """Sends what has ended, within seconds."""
        ...


@dataclass(frozen=True, slots=True)
class _Unrecorded:
    context: TraceContext

    def end(self, attributes: Attributes, *, error: str = "", at_ns: int | None = None) -> None:
        """Does nothing: tracing is off."""


class NoTracing:
    """Nothing goes anywhere, and a trace that came is passed on as it is."""

    def begin(self, name: str, parent: TraceContext | None, *, inside: bool = False, at_ns: int | None = None) -> Span:
        return _Unrecorded(parent or TraceContext.drawn())

    def close(self) -> None:
        """Nothing is there to be sent."""


def endpoint_in_force(option: str | None, environment: Mapping[str, str], signal: str = "TRACES") -> str:
    """The collector that spans (or METRICS) go to: the option's, else what OpenTelemetry's variables say; "": none.

    The option asks for spans, whatever the variables say; OTEL_METRICS_EXPORTER=none turns metrics off also then.
    ValueError names what says something that cannot be.
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
            f"OTEL_EXPORTER_OTLP_PROTOCOL must be grpc, which is all that is spoken here, got {protocol!r}"
        )
    return endpoint


def open_tracing(endpoint: str, service: str) -> Tracing:
    """Spans of `service`, sent to `endpoint`; nowhere if that is "". OutriderError if they cannot be."""
    if not endpoint:
        return NoTracing()
    try:
        from outrider.workers.serving.open_telemetry import OpenTelemetry
    except ImportError as error:
        raise OutriderError(
            f"spans to {endpoint} need OpenTelemetry's exporter, which is not installed: pip install 'outrider[otel]'"
        ) from error
    return OpenTelemetry(endpoint, service)
