"""Where spans go, by option and environment; and how long a collector that is not there is waited for."""

import subprocess
import sys
import time

import pytest
from patience import AT_ONCE_S

from outrider.workers.serving.observability.open_telemetry import OpenTelemetry
from outrider.workers.serving.observability.tracing import NoTracing, open_tracing, resolve_endpoint
from outrider.workers.types.requests.trace_context import TraceContext

AT, ELSEWHERE = "http://collector:4317", "https://elsewhere:4317"


@pytest.mark.parametrize(
    ("option", "environment", "endpoint"),
    [
        (None, {}, ""),
        (AT, {}, AT),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": AT}, AT),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": AT, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": ELSEWHERE}, ELSEWHERE),
        (ELSEWHERE, {"OTEL_EXPORTER_OTLP_ENDPOINT": AT, "OTEL_SDK_DISABLED": "true"}, ELSEWHERE),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": AT, "OTEL_SDK_DISABLED": "TRUE"}, ""),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": AT, "OTEL_TRACES_EXPORTER": "none"}, ""),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": AT, "OTEL_TRACES_EXPORTER": "otlp"}, AT),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, ""),
    ],
)
def test_the_option_says_where_spans_go_and_else_opentelemetrys_variables(
    option: str | None, environment: dict[str, str], endpoint: str
) -> None:
    assert resolve_endpoint(option, environment) == endpoint


@pytest.mark.parametrize(
    ("option", "environment", "endpoint"),
    [
        (AT, {}, AT),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": AT, "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": ELSEWHERE}, ELSEWHERE),
        (None, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": AT}, ""),
        (AT, {"OTEL_METRICS_EXPORTER": "none"}, ""),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": AT, "OTEL_METRICS_EXPORTER": "none"}, ""),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": AT, "OTEL_TRACES_EXPORTER": "none"}, AT),
    ],
)
def test_metrics_go_to_the_same_collector_unless_they_are_turned_off(
    option: str | None, environment: dict[str, str], endpoint: str
) -> None:
    assert resolve_endpoint(option, environment, "METRICS") == endpoint


@pytest.mark.parametrize(
    ("option", "environment", "message"),
    [
        ("collector:4317", {}, "otlp_endpoint must be http://HOST:PORT or https://HOST:PORT, got 'collector:4317'"),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "x"}, "OTEL_EXPORTER_OTLP_ENDPOINT must be http://HOST:PORT"),
        (AT, {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "OTEL_EXPORTER_OTLP_PROTOCOL must be grpc"),
    ],
)
def test_what_cannot_be_a_collector_is_refused_by_name(
    option: str | None, environment: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_endpoint(option, environment)


def test_without_a_collector_a_trace_is_passed_on_as_it_is_and_no_package_is_loaded() -> None:
    code = (
        "import sys; from outrider.workers.serving.observability.tracing import open_tracing, TraceContext;"
        "context = TraceContext.new(); span = open_tracing('', 'x').begin('a', context);"
        "print(span.context == context, 'opentelemetry' in sys.modules)"
    )

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert said.stdout.split() == ["True", "False"]
    assert isinstance(open_tracing("", "x"), NoTracing)


def test_without_the_exporter_one_line_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['opentelemetry.exporter'] = None;"
        "from outrider.workers.serving.observability.tracing import open_tracing; open_tracing('http://h:1', 'x')"
    )

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert said.stderr.splitlines()[-1] == (
        "outrider.workers.types.errors.OutriderError: spans to http://h:1 need OpenTelemetry's exporter, which is not "
        "installed: pip install 'outrider[otel]'"
    )


def test_a_collector_that_is_not_there_holds_nobody_up_for_long() -> None:
    tracing = OpenTelemetry("http://127.0.0.1:9", "x")
    tracing.begin("lost", TraceContext.parse(f"00-{'1' * 32}-{'2' * 16}-01")).end({})
    began = time.monotonic()

    tracing.close()

    assert time.monotonic() - began < 5 + AT_ONCE_S
