"""A gateway's metrics under the names of other tools: vLLM's, and OpenTelemetry's (gen_ai_metrics.py).

Request metrics cover this gateway's requests. Engine metrics cover all ready replicas, so they are equal at every
gateway, except that waiting requests include those of this gateway.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from outrider.cluster.gateway.observability.gen_ai_metrics import HISTOGRAMS, GenAiMetrics
from outrider.workers.serving.observability.metrics_export import open_metrics_export
from outrider.workers.text.assembler import Usage
from outrider.workers.types.counters import EngineCounters

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_TOKEN_SECONDS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)
_SHARES = tuple(tenth / 10 for tenth in range(1, 11))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """An accepted request that has ended. Times are in seconds; None if it had no first, or no second, token."""

    operation: str  # "chat" or "text_completion"
    seconds: float
    first_token_s: float | None
    token_s: float | None  # mean time per token after the first
    usage: Usage
    finish_reasons: Sequence[str]  # one per finished output
    error: str = ""  # why it failed; a disconnected client is not a failure


class KnownMetrics:
    """The metrics of one gateway. `model`: name of the served model."""

    def __init__(self, registry: CollectorRegistry, otlp_endpoint: str = "", service: str = "") -> None:
        """`otlp_endpoint`: collector of `gen_ai.server.*`; "": none. `service`: the service name for it.

        Raises OutriderError if metrics cannot be sent there.
        """

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, ["model_name"], registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, ["model_name", *labels], registry=registry)

        def seconds(name: str, text: str, buckets: Sequence[float], labels: Sequence[str]) -> Histogram:
            return Histogram(name, text, labels, registry=registry, buckets=buckets)

        self._running = gauge("vllm:num_requests_running", "Requests running in engines.")
        self._waiting = gauge("vllm:num_requests_waiting", "Requests waiting in engines or at this gateway.")
        self._kv_usage = gauge("vllm:kv_cache_usage_perc", "KV cache usage of the fullest replica, 0 to 1.")
        self._prompt = counter("vllm:prompt_tokens", "Prompt tokens.")
        self._generated = counter("vllm:generation_tokens", "Generated tokens.")
        self._success = counter("vllm:request_success", "Finished outputs, by reason.", "finished_reason")
        self._drafts = counter("vllm:spec_decode_num_drafts", "Rounds that verified drafts.")
        self._drafted = counter("vllm:spec_decode_num_draft_tokens", "Drafts verified.")
        self._accepted = counter("vllm:spec_decode_num_accepted_tokens", "Drafts accepted.")
        self._by_position = counter(
            "vllm:spec_decode_num_accepted_tokens_per_pos", "Accepted drafts, by position in a round.", "position"
        )
        own = ["model_name"]
        self._first = seconds("vllm:time_to_first_token_seconds", "Time to the first token.", _SECONDS, own)
        self._each = seconds(
            "vllm:time_per_output_token_seconds", "Time per token after the first.", _TOKEN_SECONDS, own
        )
        self._whole = seconds("vllm:e2e_request_latency_seconds", "Time to a request's end.", _SECONDS, own)
        self._gen_ai = GenAiMetrics(registry, open_metrics_export(otlp_endpoint, service, HISTOGRAMS))
        self._acceptance = Histogram(
            "outrider_gateway_request_acceptance",
            "Share of a request's drafts that were accepted; requests without drafts do not count.",
            registry=registry,
            buckets=_SHARES,
        )

    def close(self) -> None:
        """Sends unsent metrics to the collector, with a timeout of seconds."""
        self._gen_ai.close()

    def show(self, engines: Sequence[EngineCounters], model: str, queued: int) -> None:
        """Sets the gauges and counters of engines. `queued`: requests that wait at this gateway.

        Sets nothing before the model is known: a series without a name would remain beside the real one.
        """
        if not model:
            return
        self._running.labels(model).set(sum(engine.running for engine in engines))
        self._waiting.labels(model).set(queued + sum(engine.waiting for engine in engines))
        self._kv_usage.labels(model).set(max((engine.kv_cache_usage for engine in engines), default=0.0))

    def count(self, ended: Ended, model: str) -> None:
        usage = ended.usage
        self._prompt.labels(model).inc(usage.prompt_tokens)
        self._generated.labels(model).inc(usage.completion_tokens)
        for reason in ended.finish_reasons:
            self._success.labels(model, reason).inc()
        self._count_drafts(usage, model)
        self._whole.labels(model).observe(ended.seconds)
        if ended.first_token_s is not None:
            self._first.labels(model).observe(ended.first_token_s)
        if ended.token_s is not None:
            self._each.labels(model).observe(ended.token_s)
        self._gen_ai.observe(
            ended.operation,
            model,
            seconds=ended.seconds,
            first_token_s=ended.first_token_s,
            token_s=ended.token_s,
            error=ended.error,
        )

    def _count_drafts(self, usage: Usage, model: str) -> None:
        if not usage.drafted:
            return
        self._drafts.labels(model).inc(usage.drafted_per_position[0])
        self._drafted.labels(model).inc(usage.drafted)
        self._accepted.labels(model).inc(usage.accepted)
        for position, count in enumerate(usage.accepted_per_position):
            self._by_position.labels(model, str(position)).inc(count)
        self._acceptance.observe(usage.accepted / usage.drafted)
