"""`gen_ai.server.*` as OpenTelemetry's conventions define them, for Prometheus and by OTLP."""

import asyncio
from pathlib import Path

import pytest
from collector import attributes, collecting
from fakes import FakeEngine
from gateway.harness import rest, running, stopping, tokens
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics
from prometheus_client import CollectorRegistry, generate_latest

from outrider.cluster.gateway.observability.gen_ai_metrics import (
    HISTOGRAMS,
    REQUEST_DURATION,
    TIME_TO_FIRST_TOKEN,
    GenAiMetrics,
)
from outrider.workers.serving.observability.metrics_export import NoMetricsExport

CHAT = {
    "gen_ai_operation_name": "chat",
    "gen_ai_provider_name": "outrider",
    "gen_ai_request_model": "m",
    "gen_ai_response_model": "m",
}


def observed(**changed: object) -> CollectorRegistry:
    registry = CollectorRegistry()
    times: dict[str, object] = {"seconds": 3.0, "first_token_s": 0.3, "token_s": 0.02, "error": ""}
    GenAiMetrics(registry, NoMetricsExport()).observe("chat", "m", **(times | changed))  # type: ignore[arg-type]
    return registry


def test_names_are_those_of_the_conventions() -> None:
    assert {one.name for one in HISTOGRAMS} == {
        gen_ai_metrics.GEN_AI_SERVER_REQUEST_DURATION,
        gen_ai_metrics.GEN_AI_SERVER_TIME_TO_FIRST_TOKEN,
        gen_ai_metrics.GEN_AI_SERVER_TIME_PER_OUTPUT_TOKEN,
    }


def test_prometheus_has_them_with_underscores_the_unit_and_the_conventions_bounds() -> None:
    registry = observed()

    for histogram in HISTOGRAMS:
        name = histogram.name.replace(".", "_") + "_seconds"
        labels = CHAT | ({"error_type": ""} if histogram is REQUEST_DURATION else {})
        assert registry.get_sample_value(f"{name}_count", labels) == 1
        lines = [line for line in generate_latest(registry).decode().splitlines() if line.startswith(f"{name}_bucket")]
        bounds = [float(line.split('le="')[1].split('"')[0]) for line in lines]
        assert bounds == [*histogram.bounds, float("inf")]


def test_a_request_that_failed_says_why_and_counts_in_no_time_of_tokens() -> None:
    registry = observed(error="unavailable")

    failed = CHAT | {"error_type": "unavailable"}
    assert registry.get_sample_value("gen_ai_server_request_duration_seconds_count", failed) == 1
    assert registry.get_sample_value("gen_ai_server_time_to_first_token_seconds_count", CHAT) is None
    assert registry.get_sample_value("gen_ai_server_time_per_output_token_seconds_count", CHAT) is None


@pytest.mark.parametrize("sent", [True, False])
def test_a_collector_gets_them_by_the_conventions_names_when_the_gateway_ends(model: Path, sent: bool) -> None:
    async def scenario(endpoint: str) -> None:
        async with running(model, FakeEngine(), otlp_metrics_endpoint=endpoint) as cluster:
            await rest(cluster.inference.Generate(tokens(5, stopping=stopping(max_tokens=4))))

    with collecting() as collector:
        asyncio.run(scenario(collector.address if sent else ""))

    assert collector.metrics.keys() == ({one.name for one in HISTOGRAMS} if sent else set())
    if sent:
        metric = collector.metrics[TIME_TO_FIRST_TOKEN.name]
        (point,) = metric.histogram.data_points
        assert (metric.unit, point.count) == ("s", 1)
        assert tuple(point.explicit_bounds) == TIME_TO_FIRST_TOKEN.bounds
        assert attributes(point) == {
            "gen_ai.operation.name": "text_completion",
            "gen_ai.provider.name": "outrider",
            "gen_ai.request.model": "small",
            "gen_ai.response.model": "small",
        }
