"""`gen_ai.server.*`: the metrics of OpenTelemetry's semantic conventions for generative AI servers (1.41).

Recorded in the Prometheus registry, with underscores for dots, and sent to an OTLP collector if one is configured.
"""

from prometheus_client import CollectorRegistry, Histogram

from outrider.workers.serving.observability.metrics_export import MetricsExport, SecondsHistogram

REQUEST_DURATION = SecondsHistogram(
    "gen_ai.server.request.duration",
    "From a request's arrival to its end.",
    (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
)
TIME_TO_FIRST_TOKEN = SecondsHistogram(
    "gen_ai.server.time_to_first_token",
    "From a request's arrival to its first token.",
    (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
TIME_PER_OUTPUT_TOKEN = SecondsHistogram(
    "gen_ai.server.time_per_output_token",
    "Per token after the first.",
    (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
)
HISTOGRAMS = (REQUEST_DURATION, TIME_TO_FIRST_TOKEN, TIME_PER_OUTPUT_TOKEN)
_ATTRIBUTES = ("gen_ai.provider.name", "gen_ai.operation.name", "gen_ai.request.model", "gen_ai.response.model")
_ERROR = "error.type"


class GenAiMetrics:
    """The `gen_ai.server.*` metrics of one gateway."""

    def __init__(self, registry: CollectorRegistry, export: MetricsExport) -> None:
        self._export = export
        self._kept = {one.name: self._histogram(one, registry) for one in HISTOGRAMS}

    def observe(
        self,
        operation: str,
        model: str,
        *,
        seconds: float,
        first_token_s: float | None,
        token_s: float | None,
        error: str,
    ) -> None:
        """Records one request. `error`: why it failed, else "". Only times of successful requests are recorded."""
        attributes = dict(zip(_ATTRIBUTES, ("outrider", operation, model, model), strict=True))
        self._observe(REQUEST_DURATION, seconds, attributes | ({_ERROR: error} if error else {}))
        if not error and first_token_s is not None:
            self._observe(TIME_TO_FIRST_TOKEN, first_token_s, attributes)
        if not error and token_s is not None:
            self._observe(TIME_PER_OUTPUT_TOKEN, token_s, attributes)

    def close(self) -> None:
        self._export.close()

    def _observe(self, histogram: SecondsHistogram, seconds: float, attributes: dict[str, str]) -> None:
        labels = {_underscored(name): attributes.get(name, "") for name in _names(histogram)}
        self._kept[histogram.name].labels(**labels).observe(seconds)
        self._export.record(histogram.name, seconds, attributes)

    @staticmethod
    def _histogram(one: SecondsHistogram, registry: CollectorRegistry) -> Histogram:
        labels = [_underscored(name) for name in _names(one)]
        name = f"{_underscored(one.name)}_seconds"
        return Histogram(name, one.text, labels, registry=registry, buckets=one.bounds)


def _names(histogram: SecondsHistogram) -> tuple[str, ...]:
    return (*_ATTRIBUTES, _ERROR) if histogram is REQUEST_DURATION else _ATTRIBUTES


def _underscored(name: str) -> str:
    return name.replace(".", "_")
