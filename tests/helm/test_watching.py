"""Dashboards and alerts: made from what they say they are, of metrics that exist, and tried on series by promtool."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from helm.rendering import CHART, example

from helm.tools.dashboards import DASHBOARDS, FOLDER, as_json
from outrider.cluster.gateway.observability.metrics import GatewayMetrics
from outrider.workers.serving.observability.metrics import DEPRECATED

ROOT = CHART.parents[1]
HERE = Path(__file__).parent
_NAME = re.compile(r"\b(?:ray_)?outrider_[a-z0-9_]+")
_SERIES_OF = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}


def _gateway_series() -> set[str]:
    families = GatewayMetrics().registry.collect()
    return {family.name + ending for family in families for ending in _SERIES_OF[family.type]}


def _engine_metrics() -> set[str]:
    definitions = ROOT / "workers" / "serving" / "observability" / "metrics.py"
    return set(re.findall(r'"(outrider_[a-z0-9_]+)"', definitions.read_text()))


def _engine_series() -> set[str]:
    """Under Ray's prefix, with every ending that a metric of that name may have."""
    endings = {ending for group in _SERIES_OF.values() for ending in group}
    return {f"ray_{name}{ending}" for name in _engine_metrics() for ending in endings}


def _expressions() -> list[str]:
    panels = [panel for _, panels in DASHBOARDS.values() for panel in panels]
    rules = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())["groups"][0]["rules"]
    return [query for panel in panels for query, _ in panel.queries] + [rule["expr"] for rule in rules]


@pytest.mark.parametrize("name", sorted(DASHBOARDS))
def test_a_dashboard_in_the_chart_is_the_one_that_its_panels_make(name: str) -> None:
    assert (FOLDER / f"{name}.json").read_text() == as_json(name), "run python helm/tools/dashboards.py"


def test_the_chart_has_no_other_dashboard_and_ships_them_all() -> None:
    assert {path.stem for path in FOLDER.glob("*")} == set(DASHBOARDS)
    shipped = [
        one for one in example("r1-2x8-h200").of("ConfigMap") if "grafana_dashboard" in one["metadata"]["labels"]
    ]
    assert {json.loads(text)["uid"] for one in shipped for text in one["data"].values()} == {
        f"outrider-{name}" for name in DASHBOARDS
    }


def test_every_series_that_is_asked_for_exists() -> None:
    known = _gateway_series() | _engine_series()
    asked = {name for expression in _expressions() for name in _NAME.findall(expression)}

    assert len(asked) > 20
    assert asked - known == set()


def test_every_metric_is_shown_somewhere() -> None:
    shown = {name for expression in _expressions() for name in _NAME.findall(expression)}

    gateway = {family.name for family in GatewayMetrics().registry.collect()}
    for metric in gateway | {f"ray_{name}" for name in _engine_metrics() - DEPRECATED.keys()}:
        assert shown & {metric + ending for group in _SERIES_OF.values() for ending in group}, metric


def test_no_deprecated_metric_is_shown_or_watched() -> None:
    asked = {name for expression in _expressions() for name in _NAME.findall(expression)}

    assert DEPRECATED
    assert asked & {f"ray_{name}" for name in DEPRECATED} == set()


def test_the_alerts_in_the_chart_are_the_files() -> None:
    spec = example("r1-2x8-h200").one("PrometheusRule")["spec"]

    assert spec == yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())


def test_every_alert_has_a_test_and_says_what_to_do() -> None:
    (group,) = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())["groups"]
    tests = yaml.safe_load((HERE / "alerts_test.yaml").read_text())["tests"]
    fired = {one["alertname"] for test in tests for one in test["alert_rule_test"] if one["exp_alerts"]}

    assert fired == {rule["alert"] for rule in group["rules"]}
    assert all({"summary", "description"} == set(rule["annotations"]) for rule in group["rules"])


def test_alerts_fire_on_what_they_are_for_and_rest_otherwise() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    for command in (
        ("check", "rules", str(CHART / "files" / "alerts.yaml")),
        ("test", "rules", str(HERE / "alerts_test.yaml")),
    ):
        done = subprocess.run([promtool, *command], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
