"""What the chart promises about security, one assertion each, for every example."""

import itertools
import re
from collections.abc import Mapping
from typing import Any

import pytest
from helm.rendering import EXAMPLES, Object, Pod, Rendered, example, render, values_of, with_values

MANY = ("worker", "head", "gateway")
SECRET_NAMES = re.compile(r"token|password|secret|api_?key|credential", re.IGNORECASE)


# Pods


def test_01_no_pod_runs_as_root(rendered: Rendered) -> None:
    for pod in rendered.pods():
        context = pod.spec["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] > 0
        assert context["runAsGroup"] > 0


def test_02_no_container_may_become_root(rendered: Rendered) -> None:
    for name, container in rendered.containers():
        assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
        assert container["securityContext"]["runAsNonRoot"] is True, name
        assert container["securityContext"].get("runAsUser", 1) != 0, name


def test_03_no_container_is_privileged(rendered: Rendered) -> None:
    assert not any(container["securityContext"].get("privileged") for _, container in rendered.containers())


def test_04_every_container_drops_all_capabilities(rendered: Rendered) -> None:
    for name, container in rendered.containers():
        assert container["securityContext"]["capabilities"]["drop"] == ["ALL"], name


def test_05_no_capability_is_added_but_ipc_lock_with_rdma(rendered: Rendered) -> None:
    rdma = "rdma/hca" in str(rendered.pod("worker").spec)
    for name, container in rendered.containers():
        wanted = ["IPC_LOCK"] if rdma and name == "worker/ray-worker" else []
        assert container["securityContext"]["capabilities"].get("add", []) == wanted, name


def test_06_every_root_file_system_is_read_only(rendered: Rendered) -> None:
    for name, container in rendered.containers():
        assert container["securityContext"]["readOnlyRootFilesystem"] is True, name


def test_07_every_pod_has_a_seccomp_profile(rendered: Rendered) -> None:
    for pod in rendered.pods():
        assert pod.spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}


def test_08_no_container_weakens_what_its_pod_promises(rendered: Rendered) -> None:
    allowed = {"allowPrivilegeEscalation", "readOnlyRootFilesystem", "runAsNonRoot", "privileged", "capabilities"}
    assert all(set(container["securityContext"]) <= allowed for _, container in rendered.containers())


def test_09_no_pod_shares_the_nodes_namespaces(rendered: Rendered) -> None:
    for pod in rendered.pods():
        assert not any(pod.spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"))


def test_10_no_container_takes_a_port_of_the_node(rendered: Rendered) -> None:
    for name, container in rendered.containers():
        assert not any("hostPort" in port for port in container.get("ports", [])), name


def test_11_a_path_of_the_node_is_mounted_for_the_node_cache_alone(rendered: Rendered) -> None:
    found = {
        (pod.component, volume["name"])
        for pod in rendered.pods()
        for volume in pod.spec["volumes"]
        if "hostPath" in volume
    }
    cached = "fetch-weights" in str(rendered.pod("worker").spec.get("initContainers"))
    assert found == ({("worker", "weights")} if cached else set())


def test_12_sysctls_are_of_the_safe_set(rendered: Rendered) -> None:
    names = {one["name"] for pod in rendered.pods() for one in pod.spec["securityContext"].get("sysctls", [])}
    assert names == {"net.ipv4.ip_local_port_range"}


def test_13_models_are_mounted_read_only_where_they_are_served(rendered: Rendered) -> None:
    for pod in rendered.pods():
        for container in pod.spec["containers"] if pod.long_running else ():
            weights = [one for one in container["volumeMounts"] if one["name"] == "weights"]
            assert all(one["readOnly"] is True for one in weights)


def test_14_every_image_has_a_version(rendered: Rendered) -> None:
    for name, container in rendered.containers():
        assert re.fullmatch(r"\S+:\d[\w.-]*", container["image"]), name


# Resources and probes


def test_15_every_container_asks_for_cpu_and_memory(rendered: Rendered) -> None:
    for name, container in rendered.containers():
        assert set(container["resources"]["requests"]) >= {"cpu", "memory"}, name


def test_16_every_container_has_a_limit_of_memory(rendered: Rendered) -> None:
    for name, container in rendered.containers():
        assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"], name


def test_17_every_long_running_container_has_all_three_probes(rendered: Rendered) -> None:
    for pod in rendered.pods():
        for container in pod.spec["containers"] if pod.long_running else ():
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container), container["name"]


def test_18_volumes_in_memory_have_a_limit(rendered: Rendered) -> None:
    for pod in rendered.pods():
        for volume in pod.spec["volumes"]:
            if volume.get("emptyDir", {}).get("medium") == "Memory":
                assert volume["emptyDir"]["sizeLimit"], volume["name"]


# Secrets


def test_19_the_chart_renders_no_secret(rendered: Rendered) -> None:
    assert rendered.of("Secret") == []


def test_20_no_secret_stands_in_an_environment_variable(rendered: Rendered) -> None:
    for name, container in rendered.containers():
        for one in container.get("env", []):
            if one["name"].endswith(("_FILE", "_PATH")):
                assert one["value"].startswith("/"), f"{name}: {one['name']}"
            elif SECRET_NAMES.search(one["name"]):
                assert set(one) == {"name", "valueFrom"}, f"{name}: {one['name']}"
                assert set(one["valueFrom"]) == {"secretKeyRef"}


def test_21_secrets_reach_processes_as_files_but_for_rays_own_token(rendered: Rendered) -> None:
    by_reference = {
        one["name"]
        for _, container in rendered.containers()
        for one in container.get("env", [])
        if "secretKeyRef" in str(one)
    }
    assert by_reference == {"RAY_AUTH_TOKEN"}


def test_22_arguments_name_files_and_no_secret(rendered: Rendered) -> None:
    for name, container in rendered.containers():
        words = [*container.get("command", []), *container.get("args", [])]
        for option, value in itertools.pairwise(words):
            if SECRET_NAMES.search(option) and option.startswith("--"):
                known = option in ("--max-queued-tokens", "--max-prompt-tokens", "--max-tokens")
                assert known or value.startswith("/etc/outrider/"), f"{name}: {option}"


def test_23_mounted_secrets_are_read_only_and_closed_to_others(rendered: Rendered) -> None:
    for pod in rendered.pods():
        secrets = {one["name"]: one["secret"] for one in pod.spec["volumes"] if "secret" in one}
        assert all(secret["defaultMode"] == 0o440 for secret in secrets.values())
        for container in pod.containers:
            mounts = [one for one in container["volumeMounts"] if one["name"] in secrets]
            assert all(one["readOnly"] is True for one in mounts)


def test_24_the_cluster_key_is_mounted_for_gateways_and_controller_alone(rendered: Rendered) -> None:
    holders = {
        name
        for name, container in rendered.containers()
        if "cluster-key" in {one["name"] for one in container["volumeMounts"]}
    }
    assert holders == {"gateway/gateway", "head/controller"}


def test_25_secrets_of_clients_are_for_the_test_alone(rendered: Rendered) -> None:
    for pod in rendered.pods():
        names = {one["secret"]["secretName"] for one in pod.spec["volumes"] if "secret" in one}
        assert pod.component == "test" or not names & {"test-token", "test-client"}


def test_26_config_maps_hold_no_secret(rendered: Rendered) -> None:
    for one in rendered.of("ConfigMap"):
        assert not re.search(r"(?i)\b(password|secret|token)\s*[:=]\s*\S", str(one["data"].get("serve.yaml", "")))


def test_27_pods_do_not_learn_of_other_services_by_environment(rendered: Rendered) -> None:
    assert all(pod.spec["enableServiceLinks"] is False for pod in rendered.pods())


# Rights


def test_28_no_pod_gets_a_service_accounts_token_by_default(rendered: Rendered) -> None:
    assert all(pod.spec["automountServiceAccountToken"] is False for pod in rendered.pods())
    assert all(one["automountServiceAccountToken"] is False for one in rendered.of("ServiceAccount"))


def test_29_the_role_is_for_this_raycluster_by_name_get_and_patch(rendered: Rendered) -> None:
    cluster, *followed = rendered.one("Role")["rules"]
    assert cluster == {
        "apiGroups": ["ray.io"],
        "resources": ["rayclusters"],
        "resourceNames": [rendered.one("RayCluster")["metadata"]["name"]],
        "verbs": ["get", "patch"],
    }
    of_keda = rendered.of("ScaledObject")
    assert followed == [
        {
            "apiGroups": ["apps"],
            "resources": ["deployments/scale"],
            "resourceNames": [one["spec"]["scaleTargetRef"]["name"]],
            "verbs": ["get"],
        }
        for one in of_keda
    ]


def test_30_the_role_is_bound_to_the_heads_account_and_only_where_it_scales(rendered: Rendered) -> None:
    scales = "kubernetes-api" in str(rendered.pod("head").spec)
    bindings = rendered.of("RoleBinding")
    assert len(bindings) == (1 if scales else 0)
    for one in bindings:
        assert one["roleRef"]["name"] == rendered.one("Role")["metadata"]["name"]
        (subject,) = one["subjects"]
        assert subject["name"] == rendered.pod("head").spec["serviceAccountName"]


def test_31_nothing_is_bound_for_the_whole_cluster(rendered: Rendered) -> None:
    assert not {one["kind"] for one in rendered.objects} & {"ClusterRole", "ClusterRoleBinding"}


def test_32_only_the_controllers_container_sees_kubernetes_api(rendered: Rendered) -> None:
    holders = {
        name for name, one in rendered.containers() if "kubernetes-api" in {m["name"] for m in one["volumeMounts"]}
    }
    assert holders <= {"head/ray-head"}


def test_33_head_worker_and_gateway_have_accounts_of_their_own(rendered: Rendered) -> None:
    accounts = {rendered.pod(component).spec["serviceAccountName"] for component in MANY}
    assert len(accounts) == 3
    assert accounts <= {one["metadata"]["name"] for one in rendered.of("ServiceAccount")}


# Network: who reaches what


def _selects(selector: Mapping[str, Any], pod: Pod) -> bool:
    return selector["matchLabels"].items() <= pod.labels.items()


def _ports(rule: Object) -> set[tuple[int, int]]:
    return {(one["port"], one.get("endPort", one["port"])) for one in rule["ports"]}


def _reachable(rendered: Rendered, source: str, target: str) -> set[tuple[int, int]]:
    """Ports of `target` that its own policy opens to `source`."""
    pod = rendered.pod(source)
    opened: set[tuple[int, int]] = set()
    for rule in rendered.policy(target).get("ingress", []):
        peers = [peer["podSelector"] for peer in rule["from"] if set(peer) == {"podSelector"}]
        if any(peer.get("matchLabels") and _selects(peer, pod) for peer in peers):
            opened |= _ports(rule)
    return opened


def _allowed(rendered: Rendered, source: str, target: str) -> set[tuple[int, int]]:
    """Ports of `target` that the policy of `source` lets it call."""
    pod = rendered.pod(target)
    return {
        port
        for rule in rendered.policy(source)["egress"]
        if any(
            "podSelector" in peer and peer["podSelector"].get("matchLabels") and _selects(peer["podSelector"], pod)
            for peer in rule["to"]
        )
        for port in _ports(rule)
    }


RAY_NODE = {(6380, 6380), (6381, 6381), (6382, 6382), (6383, 6383), (52365, 52365), (10002, 10999)}
RAY_HEAD = RAY_NODE | {(6379, 6379), (8265, 8265)}
CONTROLLER, LEADERS, TORCH, GRPC = (50050, 50050), (20100, 20199), (32768, 49151), (50051, 50051)
REACH: dict[tuple[str, str], set[tuple[int, int]]] = {
    ("gateway", "head"): {CONTROLLER},
    ("gateway", "worker"): {LEADERS},
    ("gateway", "gateway"): set(),
    ("head", "worker"): RAY_NODE,
    ("head", "gateway"): set(),
    ("worker", "head"): RAY_HEAD,
    ("worker", "worker"): RAY_NODE | {TORCH},
    ("worker", "gateway"): set(),
    ("test", "gateway"): {GRPC},
    ("test", "head"): set(),
    ("test", "worker"): set(),
}


@pytest.mark.parametrize(("source", "target"), sorted(REACH))
def test_34_each_port_is_opened_to_those_who_need_it_and_nobody_else(
    rendered: Rendered, source: str, target: str
) -> None:
    assert _reachable(rendered, source, target) == REACH[source, target]


@pytest.mark.parametrize(("source", "target"), sorted(REACH))
def test_35_each_component_may_call_what_it_needs_and_nothing_else(
    rendered: Rendered, source: str, target: str
) -> None:
    assert _allowed(rendered, source, target) == REACH[source, target]


def test_36_every_pod_has_a_policy_for_both_directions(rendered: Rendered) -> None:
    for pod in rendered.pods():
        (policy,) = [one["spec"] for one in rendered.of("NetworkPolicy") if _selects(one["spec"]["podSelector"], pod)]
        assert policy["policyTypes"] == ["Ingress", "Egress"], pod.component


def test_37_no_rule_opens_everything(rendered: Rendered) -> None:
    for one in rendered.of("NetworkPolicy"):
        for rule in one["spec"].get("ingress", []):
            assert rule.get("from"), one["metadata"]["name"]
            assert rule.get("ports"), one["metadata"]["name"]
        for rule in one["spec"]["egress"]:
            assert rule.get("to"), one["metadata"]["name"]
            assert rule.get("ports"), one["metadata"]["name"]


def test_38_clients_reach_the_gateways_port_alone() -> None:
    rules = example("mutual-tls").policy("gateway")["ingress"]
    for rule in rules:
        if {"namespaceSelector": {"matchLabels": {"team": "applications"}}} in rule["from"]:
            assert _ports(rule) == {GRPC}
            break
    else:
        pytest.fail("clients are not let in")


def test_39_metrics_are_for_monitoring_and_rays_dashboard_for_nobody(rendered: Rendered) -> None:
    for component, port in (("gateway", 9464), ("head", 8080), ("worker", 8080)):
        rules = [rule for rule in rendered.policy(component)["ingress"] if (port, port) in _ports(rule)]
        assert [rule["from"] for rule in rules] == [
            [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
        ]
    dashboards = [rule["from"] for rule in rendered.policy("head")["ingress"] if (8265, 8265) in _ports(rule)]
    assert dashboards == [[{"podSelector": {"matchLabels": _labels("worker")}}]]


def _labels(component: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "outrider",
        "app.kubernetes.io/instance": "outrider",
        "app.kubernetes.io/component": component,
    }


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_40_only_what_is_asked_for_is_a_way_in_from_outside(name: str) -> None:
    rendered, asked = example(name), values_of(name).get("gateway", {})
    for service in rendered.of("Service"):
        if service["spec"].get("type", "ClusterIP") != "ClusterIP":
            assert service["metadata"]["name"].endswith("-gateway")
    assert not {one["kind"] for one in rendered.objects} & {"Gateway", "GRPCRoute"}
    for kind, key in (("Ingress", "ingress"), ("HTTPRoute", "httpRoute")):
        assert len(rendered.of(kind)) == asked.get(key, {}).get("enabled", False)


def test_41_selectors_select_exactly_one_component(rendered: Rendered) -> None:
    selectors = [one["spec"]["selector"] for one in rendered.of("Service")]
    selectors += [
        one["spec"]["selector"]["matchLabels"]
        for kind in ("PodDisruptionBudget", "PodMonitor", "Deployment")
        for one in rendered.of(kind)
    ]
    selectors += [one["spec"]["podSelector"]["matchLabels"] for one in rendered.of("NetworkPolicy")]
    for selector in selectors:
        selected = {pod.component for pod in rendered.pods() if selector.items() <= pod.labels.items()}
        assert selected == {selector["app.kubernetes.io/component"]}


def test_42_services_and_probes_name_ports_that_containers_have(rendered: Rendered) -> None:
    for service in rendered.of("Service"):
        (pod,) = [pod for pod in rendered.pods() if service["spec"]["selector"].items() <= pod.labels.items()]
        assert all(port["targetPort"] in pod.ports() for port in service["spec"]["ports"])
    for pod in rendered.pods():
        for container in pod.spec["containers"]:
            probed = {
                probe["grpc"]["port"] for name, probe in container.items() if name.endswith("Probe") and "grpc" in probe
            }
            assert probed <= {port["containerPort"] for port in container.get("ports", [])}


def test_43_mounts_name_volumes_and_volumes_are_mounted(rendered: Rendered) -> None:
    for pod in rendered.pods():
        volumes = [one["name"] for one in pod.spec["volumes"]]
        mounted = {one["name"] for container in pod.containers for one in container["volumeMounts"]}
        assert len(volumes) == len(set(volumes))
        assert mounted == set(volumes), pod.component


def test_44_named_ports_are_unique_within_a_pod_and_short_enough(rendered: Rendered) -> None:
    for pod in rendered.pods():
        named = [(port["name"], port["containerPort"]) for one in pod.containers for port in one.get("ports", [])]
        assert len({name for name, _ in named}) == len({port for _, port in named}) == len(named)
        assert all(len(name) <= 15 for name, _ in named)


def test_45_pinned_ports_do_not_overlap(rendered: Rendered) -> None:
    ranges = sorted(RAY_HEAD | {CONTROLLER, LEADERS, TORCH, (8080, 8080)})
    assert all(before[1] < after[0] for before, after in itertools.pairwise(ranges))
    assert "32768 49151" in str(rendered.pod("worker").spec["securityContext"]["sysctls"])


def test_46_rays_own_services_ask_for_a_token(rendered: Rendered) -> None:
    cluster = rendered.one("RayCluster")
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    controller = rendered.pod("head").spec["containers"][1]
    (token,) = [one for one in controller["env"] if one["name"] == "RAY_AUTH_TOKEN"]
    assert token["valueFrom"]["secretKeyRef"] == {"name": cluster["metadata"]["name"], "key": "auth_token"}


def test_47_mutual_tls_and_tokens_are_what_the_gateway_is_told() -> None:
    (gateway,) = example("mutual-tls").pod("gateway").spec["containers"]
    command = gateway["command"]
    for option, file in (
        ("--tls-cert", "/etc/outrider/tls/tls.crt"),
        ("--tls-key", "/etc/outrider/tls/tls.key"),
        ("--tls-client-ca", "/etc/outrider/client-ca/ca.crt"),
        ("--auth-token-file", "/etc/outrider/auth/tokens"),
    ):
        assert command[command.index(option) + 1] == file
    assert not any("subPath" in one for one in gateway["volumeMounts"]), "a subPath is never renewed"


def test_48_without_policies_nothing_is_left_of_them() -> None:
    assert render({"networkPolicy": {"enabled": False}}).of("NetworkPolicy") == []


def test_49_a_dashboard_is_opened_to_those_who_are_named() -> None:
    who = [{"ipBlock": {"cidr": "10.1.0.0/16"}}]
    rules = render(with_values("defaults", {"networkPolicy.dashboard": who})).policy("head")["ingress"]
    assert [_ports(rule) for rule in rules if rule["from"] == who] == [{(8265, 8265)}]
