"""A gateway's metrics again, under names that other tools read: vLLM's, and OpenTelemetry's (gen_ai_metrics.py).

Requests are counted as this gateway sees them. What engines say of themselves is asked of every ready replica, so
several gateways say the same, but for the requests that wait at each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from outrider.cluster.gateway.observability.gen_ai_metrics import HISTOGRAMS, GenAiMetrics
from outrider.workers.serving.metrics_export import open_metrics_export
from outrider.workers.text.assembler import Usage
from outrider.workers.types.counters import EngineCounters

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_TOKEN_SECONDS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)
_SHARES = tuple(tenth / 10 for tenth in range(1, 11))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A request that was accepted, and has ended. Times are seconds; None: it had no token, or no second one."""

    operation: str  # "chat" or "text_completion"
    seconds: float
    first_token_s: float | None
    token_s: float | None  # after the first
    usage: Usage
    finish_reasons: Sequence[str]  # one per output that ended
    error: str = ""  # why it failed; a client that leaves is no failure


class KnownMetrics:
    """Of one gateway. `model` is the served one's name."""

    def __init__(self, registry: CollectorRegistry, otlp_endpoint: str = "", service: str = "") -> None:
        """`otlp_endpoint`: where `gen_ai.server.*` go too, as `service`; "": nowhere. OutriderError if they cannot."""

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, ["model_name"], registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, ["model_name", *labels], registry=registry)

        def seconds(name: str, text: str, buckets: Sequence[float], labels: Sequence[str]) -> Histogram:
            return Histogram(name, text, labels, registry=registry, buckets=buckets)

        self._running = gauge("vllm:num_requests_running", "Requests that engines compute.")
        self._waiting = gauge("vllm:num_requests_waiting", "Requests that wait in engines, or at this gateway.")
        self._kv_usage = gauge("vllm:kv_cache_usage_perc", "Share of the cache in use, of the fullest replica; 0 to 1.")
        self._prompt = counter("vllm:prompt_tokens", "Tokens of prompts.")
        self._generated = counter("vllm:generation_tokens", "Generated tokens.")
        self._success = counter("vllm:request_success", "Outputs that ended, by reason.", "finished_reason")
        self._drafts = counter("vllm:spec_decode_num_drafts", "Rounds that verified drafts.")
        self._drafted = counter("vllm:spec_decode_num_draft_tokens", "Drafts verified.")
        self._accepted = counter("vllm:spec_decode_num_accepted_tokens", "Drafts accepted.")
        self._by_position = counter(
            "vllm:spec_decode_num_accepted_tokens_per_pos", "Drafts accepted, by their place in a round.", "position"
        )
        own = ["model_name"]
        self._first = seconds("vllm:time_to_first_token_seconds", "To the first token.", _SECONDS, own)
        self._each = seconds("vllm:time_per_output_token_seconds", "Per token after the first.", _TOKEN_SECONDS, own)
        self._whole = seconds("vllm:e2e_request_latency_seconds", "To a request's end.", _SECONDS, own)
        self._gen_ai = GenAiMetrics(registry, open_metrics_export(otlp_endpoint, service, HISTOGRAMS))
        self._acceptance = Histogram(
            "outrider_gateway_request_acceptance",
            "Share of a request's drafts that were accepted; requests without drafts do not count.",
            registry=registry,
            buckets=_SHARES,
        )

    def close(self) -> None:
        """Sends what a collector has not got yet, within seconds."""
        self._gen_ai.close()

    def show(self, engines: Sequence[EngineCounters], model: str, queued: int) -> None:
        """How the ready replicas are now, and how many requests wait at the gateway for their turn. Nothing is shown
        before the model is known: a series without a name would stay, and readers take it for another model's."""
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
