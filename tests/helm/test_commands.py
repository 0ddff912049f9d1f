"""The chart tells outrider nothing that outrider does not know: every option and setting is checked by the program."""

from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from helm.rendering import Rendered, example, render

from outrider.cluster.cli.app import app
from outrider.cluster.cli.commands.gateway import gateway_settings
from outrider.cluster.config import ServeSettings, load_settings
from outrider.workers.types.settings import settings_of

POD_IP = "10.0.0.7"


def _parse(command: list[str]) -> tuple[str, dict[str, Any]]:
    """A subcommand and its options, as the program itself takes them."""
    assert command[0] == "outrider"
    root = typer.main.get_command(app)
    context = root.make_context(
        "outrider", [word.replace("$(POD_IP)", POD_IP) for word in command[1:]], resilient_parsing=False
    )
    name, subcommand, rest = root.resolve_command(context, [*context._protected_args, *context.args])
    return str(name), subcommand.make_context(name, rest, parent=context).params


def _container(rendered: Rendered, component: str, name: str) -> dict[str, Any]:
    (found,) = [one for one in rendered.pod(component).spec["containers"] if one["name"] == name]
    return found


def test_the_gateways_command_is_one_that_the_program_takes(rendered: Rendered) -> None:
    name, options = _parse(_container(rendered, "gateway", "gateway")["command"])
    settings = gateway_settings({**options, "cluster_key_file": None})

    assert name == "gateway"
    assert settings.resume_wait_s == 600
    assert settings.controller == "outrider-controller.serving.svc:50050"
    assert (settings.host, settings.port, settings.access.health_port, settings.metrics_port) == (
        "0.0.0.0",
        50051,
        50052,
        9464,
    )
    assert str(options["cluster_key_file"]) == "/etc/outrider/cluster/key"


def test_limits_reach_the_gateway() -> None:
    values = {
        "maxPromptTokens": 7,
        "maxStopStrings": 3,
        "maxLogitBias": 4,
        "maxSchemaBytes": 5,
        "maxMessageBytes": 2048,
    }
    _, options = _parse(_container(render({"gateway": values}), "gateway", "gateway")["command"])
    limits = gateway_settings({**options, "cluster_key_file": None}).limits

    assert (limits.max_prompt_tokens, limits.max_stop_strings, limits.max_logit_bias) == (7, 3, 4)
    assert (limits.max_schema_bytes, limits.max_message_bytes) == (5, 2048)


def test_a_collector_of_spans_is_told_to_gateways_and_controller_and_may_be_called(tmp_path: Path) -> None:
    at = {"endpoint": "http://otel-collector.monitoring:4317"}
    rendered, without = render({"tracing": at}), render({})
    _, options = _parse(_container(rendered, "gateway", "gateway")["command"])
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(rendered.serve_settings()))

    assert gateway_settings({**options, "cluster_key_file": None}).otlp_endpoint == at["endpoint"]
    assert load_settings(file, []).spans_go_to({}) == at["endpoint"]
    added = {"to": [{"namespaceSelector": {}}], "ports": [{"port": 4317, "protocol": "TCP"}]}
    for component in ("gateway", "worker"):
        egress = rendered.policy(component)["egress"]
        assert [rule for rule in egress if rule not in without.policy(component)["egress"]] == [added]
    assert rendered.policy("head") == without.policy("head")
    assert "otlp_endpoint" not in without.serve_settings()


def test_the_controllers_command_is_one_that_the_program_takes(rendered: Rendered) -> None:
    name, options = _parse(_container(rendered, "head", "controller")["command"])

    assert name == "serve"
    assert options["ray_address"] == f"{POD_IP}:6379"
    assert options["assignments"] == [f"controller_host={POD_IP}"]


def test_the_serve_settings_are_known_and_checked(rendered: Rendered, tmp_path: Path) -> None:
    given = rendered.serve_settings()
    assert set(given) <= set(settings_of(ServeSettings))

    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(given))
    settings = load_settings(file, [f"controller_host={POD_IP}"])

    assert settings.leader_port_range == (20100, 20199)
    assert settings.controller_port == rendered.pod("head").ports()["controller"]


def test_scaling_tells_the_controller_which_raycluster_and_group_it_may_patch() -> None:
    rendered = example("r1-2x8-h200")
    cluster, settings = rendered.one("RayCluster"), rendered.serve_settings()
    (group,) = cluster["spec"]["workerGroupSpecs"]

    assert settings["kubernetes_ray_cluster"] == f"serving/{cluster['metadata']['name']}"
    assert settings["kubernetes_worker_group"] == group["groupName"]
    assert settings["autoscale_max_replicas"] == group["maxReplicas"]
    assert settings["autoscale_min_replicas"] == group["minReplicas"]
    assert settings["ranks_per_node"] == 8
    assert "kubernetes_ray_cluster" not in example("defaults").serve_settings()


def test_the_tests_command_is_one_that_the_program_takes(rendered: Rendered) -> None:
    request = _container(rendered, "test", "request")
    name, options = _parse(request["command"])

    assert (name, options["prompt"], options["as_json"]) == ("generate", "def fibonacci(n):", True)
    known = {"HOME"} | {
        parameter.envvar for parameter in typer.main.get_command(app).commands["generate"].params if parameter.envvar
    }
    assert {one["name"] for one in request["env"]} <= known


@pytest.mark.parametrize(("example_name", "ranks"), [("cpu-demo", 2), ("r1-1x8-b200", 8), ("r1-2x8-h200", 16)])
def test_the_examples_split_the_model_as_they_say(example_name: str, ranks: int) -> None:
    assert example(example_name).serve_settings()["pipeline_parallel_size"] == ranks


def test_data_parallel_attention_with_spread_experts_is_what_its_example_asks_for() -> None:
    settings = example("r1-4x8-h100-dp").serve_settings()

    assert (settings["data_parallel_size"], settings["expert_parallel_size"]) == (32, 32)
    assert "tensor_parallel_size" not in settings
