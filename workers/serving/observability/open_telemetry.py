"""Exports spans with OpenTelemetry's SDK, through OTLP over gRPC. Imported only if a collector is configured.

OpenTelemetry's other environment variables (sampler, headers, resource, batches) work as its documentation describes.
"""

import threading

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from outrider.workers.serving.observability.tracing import Attributes
from outrider.workers.types.requests.trace_context import PARENT, STATE, TraceContext

_SCOPE = "outrider"
_LAST_SPANS_S = 3.0
_CARRIER = TraceContextTextMapPropagator()


class _Span:
    def __init__(self, span: trace.Span) -> None:
        self._span = span

    @property
    def context(self) -> TraceContext:
        headers: dict[str, str] = {}
        _CARRIER.inject(headers, trace.set_span_in_context(self._span))
        context = TraceContext.parse(headers[PARENT], headers.get(STATE, ""))
        assert context is not None, headers
        return context

    def end(self, attributes: Attributes, *, error: str = "", at_ns: int | None = None) -> None:
        self._span.set_attributes(attributes)
        if error:
            self._span.set_status(trace.StatusCode.ERROR, error)
        self._span.end(at_ns)


class OpenTelemetry:
    """Implements Tracing. The SDK's own thread sends spans in batches."""

    def __init__(self, endpoint: str, service: str) -> None:
        """`service` is the service name, unless OpenTelemetry's variables set another."""
        self._provider = TracerProvider(resource=resource_of(service), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer(_SCOPE)

    def begin(self, name: str, parent: TraceContext | None, *, inside: bool = False, at_ns: int | None = None) -> _Span:
        context = _CARRIER.extract(dict(parent.metadata)) if parent is not None else Context()
        kind = trace.SpanKind.INTERNAL if inside else trace.SpanKind.SERVER
        return _Span(self._tracer.start_span(name, context, kind, start_time=at_ns))

    def close(self) -> None:
        """Sends the remaining spans; waits at most a few seconds for the collector."""
        last = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        last.start()
        last.join(_LAST_SPANS_S)


def resource_of(service: str) -> Resource:
    """This process, called `service` unless OpenTelemetry's variables give it another name."""
    resource = Resource.create()
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: service}))
    return resource
