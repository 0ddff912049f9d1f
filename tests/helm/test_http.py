"""What the chart makes for HTTP clients: the port, an Ingress, an HTTPRoute, an InferencePool."""

from typing import Any

import pytest
from helm.rendering import Object, Rendered, example, render, with_values

# The parts of the resources' published schemas (Gateway API 1.4, its inference extension 1.x, KEDA 2.x) that are used.
FIELDS: dict[str, tuple[str, set[str]]] = {
    "HTTPRoute": (
        "gateway.networking.k8s.io/v1",
        {"parentRefs[].name", "parentRefs[].namespace", "hostnames[]", "rules[].matches[].path.type",
         "rules[].matches[].path.value", "rules[].timeouts.request", "rules[].backendRefs[].group",
         "rules[].backendRefs[].kind", "rules[].backendRefs[].name", "rules[].backendRefs[].port"},
    ),
    "InferencePool": (
        "inference.networking.k8s.io/v1",
        {"selector.matchLabels", "targetPorts[].number", "endpointPickerRef.name", "endpointPickerRef.port.number",
         "endpointPickerRef.failureMode"},
    ),
    "ScaledObject": (
        "keda.sh/v1alpha1",
        {"scaleTargetRef.name", "minReplicaCount", "maxReplicaCount", "pollingInterval", "cooldownPeriod",
         "advanced.horizontalPodAutoscalerConfig.behavior.scaleDown.stabilizationWindowSeconds", "triggers[].type",
         "triggers[].metricType", "triggers[].metadata", "triggers[].authenticationRef.name"},
    ),
}  # fmt: skip
EVERY_FIELD = {"scaling.keda.authenticationRef": "prometheus"}


def fields(node: Any, path: str = "") -> set[str]:
    if isinstance(node, list):
        return {found for one in node for found in fields(one, f"{path}[]")}
    if not isinstance(node, dict) or path.endswith(("matchLabels", "metadata")):
        return {path}
    return {found for key, one in node.items() for found in fields(one, f"{path}.{key}".lstrip("."))}


def objects(kind: str) -> list[Object]:
    rendered = (render(with_values("keda-volcano", EVERY_FIELD)), example("inference-gateway"), example("keda-volcano"))
    return [one for each in rendered for one in each.of(kind)]


@pytest.mark.parametrize("kind", sorted(FIELDS))
def test_a_custom_resource_has_only_fields_that_its_schema_has(kind: str) -> None:
    version, known = FIELDS[kind]
    made = objects(kind)

    assert {one["apiVersion"] for one in made} == {version}
    assert {field for one in made for field in fields(one["spec"])} == known


def http_port(rendered: Rendered) -> list[Object]:
    return [port for port in rendered.one("Service", "-gateway")["spec"]["ports"] if port["name"] == "http"]


def test_the_service_has_the_port_with_the_protocol_that_is_spoken() -> None:
    for name, protocol in (("defaults", "http"), ("mutual-tls", "https")):
        assert http_port(example(name)) == [
            {"name": "http", "port": 8000, "targetPort": "http", "appProtocol": protocol}
        ]
    (port,) = http_port(render({"gateway": {"http": {"port": 80, "appProtocol": "kubernetes.io/h2c"}}}))
    assert (port["port"], port["appProtocol"]) == (80, "kubernetes.io/h2c")


def test_without_http_there_is_no_port() -> None:
    rendered = render({"gateway": {"http": {"port": 0}}})

    assert http_port(rendered) == []
    assert "http" not in rendered.pod("gateway").ports()
    command = rendered.pod("gateway").spec["containers"][0]["command"]
    assert command[command.index("--http-port") + 1] == "0"


def test_an_ingress_leads_to_the_http_port_of_the_service() -> None:
    spec = example("http-ingress").one("Ingress")["spec"]

    (rule,) = spec["rules"]
    assert rule["host"] == "llm.example.com"
    assert [path["backend"] for path in rule["http"]["paths"]] == [
        {"service": {"name": "outrider-gateway", "port": {"name": "http"}}}
    ]
    assert spec["tls"] == [{"secretName": "llm-example-com", "hosts": ["llm.example.com"]}]


def test_an_ingress_for_any_host_has_no_host() -> None:
    spec = render({"gateway": {"ingress": {"enabled": True}}}).one("Ingress")["spec"]

    assert "tls" not in spec
    assert ["host" in rule for rule in spec["rules"]] == [False]


def test_a_route_leads_to_the_service_or_to_the_pool_where_there_is_one() -> None:
    plain, pooled = (example(name).one("HTTPRoute")["spec"] for name in ("keda-volcano", "inference-gateway"))

    assert plain["rules"][0]["backendRefs"] == [{"name": "outrider-gateway", "port": 8000}]
    pool = example("inference-gateway").one("InferencePool")["metadata"]["name"]
    assert pooled["rules"][0]["backendRefs"] == [
        {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": pool}
    ]
    assert (pooled["hostnames"], pooled["rules"][0]["timeouts"]) == (["llm.example.com"], {"request": "0s"})


def test_the_pool_selects_the_gateways_at_their_http_port_and_the_picker_knows_whose_metrics_they_have() -> None:
    rendered = example("inference-gateway")
    pool, gateway = rendered.one("InferencePool")["spec"], rendered.pod("gateway")

    selected = [pod for pod in rendered.pods() if pool["selector"]["matchLabels"].items() <= pod.labels.items()]
    assert selected == [gateway]
    assert pool["targetPorts"] == [{"number": gateway.ports()["http"]}]
    assert pool["endpointPickerRef"] == {"name": "outrider-epp", "port": {"number": 9002}, "failureMode": "FailOpen"}
    assert gateway.labels["llm-d.ai/engine-type"] == "vllm"
    assert "llm-d.ai/engine-type" not in example("defaults").pod("gateway").labels
