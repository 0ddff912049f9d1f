"""The chart in action, but for Kubernetes: what it renders is started on this machine, probed, called and watched."""

import contextlib
import dataclasses
import io
import json
import random
import re
import shutil
import signal
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from gateway.certificates import Authority
from helm.by_hand import ByHand, free_ports
from helm.rendering import CHART, Rendered, render, with_values

from helm.tools.dashboards import DASHBOARDS
from outrider import Client, ClientSecurity
from outrider.cluster.api.errors import NotAllowedError, UnavailableError
from outrider.cluster.cli.app import run
from outrider.workers.serving.rpc.cluster_key import draw_key

GATEWAY = "outrider-gateway.serving.svc"
PORTS = ("controller", "gatewayHealth", "gatewayMetrics", "gcs", "dashboard", "nodeManager", "objectManager")
PORTS += ("runtimeEnvAgent", "dashboardAgentGrpc", "dashboardAgent", "rayMetrics")
RESTLESS = {"enable_eplb": True, "eplb_window_size": 20, "eplb_step_interval": 1}
PROMETHEUS = shutil.which("prometheus")
pytestmark = [pytest.mark.full, pytest.mark.timeout(300)]


def _rendered() -> Rendered:
    """The example with mutual TLS and tokens, on ports that are free here; experts move, for the panels about them."""
    grpc_port, leader, *ports = free_ports(2 + len(PORTS))
    first = random.randrange(12_000, 30_000)  # below the ports that free_ports draws
    changes: dict[str, Any] = {f"ports.{name}": port for name, port in zip(PORTS, ports, strict=True)}
    changes |= {"ports.leaders": f"{leader}-{leader}", "gateway.service.port": grpc_port}
    changes |= {"ports.rayWorkers": f"{first}-{first + 200}", "gateway.preStopSeconds": 0, "gateway.drainSeconds": 10}
    changes |= {"parallel.pipeline": 1, "parallel.data": 2, "parallel.expert": 2}
    changes["model.settings"] = {"port": 0, "kv_cache_memory_bytes": 64 << 20, **RESTLESS}
    return render(with_values("mutual-tls", changes))


def _files(rendered: Rendered, folder: Path) -> dict[str, bytes]:
    """What the Secrets would hold, made as the README says."""
    authority = Authority(folder / "ca")
    gateway, client = authority.issue(GATEWAY), authority.issue("client")
    ca = authority.file.read_bytes()
    return {
        "/etc/outrider/serve/serve.yaml": rendered.one("ConfigMap", "-serve")["data"]["serve.yaml"].encode(),
        "/etc/outrider/cluster/key": draw_key().encode(),
        "/etc/outrider/tls/tls.crt": gateway.cert.read_bytes(),
        "/etc/outrider/tls/tls.key": gateway.key.read_bytes(),
        "/etc/outrider/client-ca/ca.crt": ca,
        "/etc/outrider/ca/ca.crt": ca,
        "/etc/outrider/client/tls.crt": client.cert.read_bytes(),
        "/etc/outrider/client/tls.key": client.key.read_bytes(),
        **_tokens(folder),
    }


def _tokens(folder: Path) -> dict[str, bytes]:
    made, printed = folder / "tokens", io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert run(["token", "test", "--role", "inference", "--file", str(made)]) == 0
    token = printed.getvalue().encode()
    return {"/etc/outrider/auth/tokens": made.read_bytes(), "/etc/outrider/token/token": token}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ByHand]:
    rendered = _rendered()
    with ByHand(rendered, _files(rendered, tmp_path_factory.mktemp("secrets"))) as cluster:
        cluster.start_ray()
        cluster.start_container("gateway", "gateway")
        cluster.wait_for_probe("gateway", "gateway", "startupProbe")
        assert not cluster.probe("gateway", "gateway", "readinessProbe"), "no model is loaded yet"
        assert cluster.probe("gateway", "gateway", "livenessProbe"), "a model that loads makes no gateway dead"
        cluster.start_container("head", "controller")
        cluster.wait_for_probe("head", "controller", "startupProbe")
        cluster.wait_for_probe("gateway", "gateway", "readinessProbe")
        yield cluster


def _security(cluster: ByHand, *, certificate: bool = True, token: bool = True) -> ClientSecurity:
    def content(name: str) -> bytes:
        return Path(cluster.here(f"/etc/outrider/{name}")).read_bytes()

    return ClientSecurity(
        ca=content("ca/ca.crt"),
        cert=content("client/tls.crt") if certificate else None,
        key=content("client/tls.key") if certificate else None,
        token=content("token/token").decode().strip() if token else None,
        server_name=GATEWAY,
    )


def _address(cluster: ByHand) -> str:
    return f"127.0.0.1:{cluster.rendered.pod('gateway').ports()['grpc']}"


def test_every_probe_answers_once_the_model_is_served(cluster: ByHand) -> None:
    for component, container in (("head", "ray-head"), ("head", "controller"), ("gateway", "gateway")):
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert cluster.probe(component, container, probe), (component, container, probe)
    command = cluster.container("worker", "ray-worker")["livenessProbe"]["exec"]["command"]
    port = str(cluster.rendered.pod("worker").ports()["agent-http"])
    assert cluster.run([word.replace(port, str(cluster.worker_agent_port)) for word in command]).returncode == 0


def test_helms_test_sends_a_real_request_and_gets_text(cluster: ByHand) -> None:
    request = cluster.container("test", "request")
    done = cluster.run(request["command"], request["env"], OUTRIDER_TLS_SERVER_NAME=GATEWAY)  # called by address here

    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["outputs"][0]["token_ids"]) == 16


def test_nobody_else_gets_in(cluster: ByHand) -> None:
    for security in (ClientSecurity(), _security(cluster, certificate=False), _security(cluster, token=False)):
        with Client(_address(cluster), security) as client, pytest.raises((UnavailableError, NotAllowedError)):
            client.generate("x", max_tokens=1)
    with Client(_address(cluster), _security(cluster)) as client:
        with pytest.raises(NotAllowedError, match="needs the role admin"):
            client.status()
        assert client.generate("x", max_tokens=1).usage.completion_tokens == 1


def _ask_prometheus(port: int, expression: str) -> list[Any]:
    query = urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?{query}", timeout=5) as answer:
        return [one for one in json.load(answer)["data"]["result"] if one["value"][1] != "NaN"]


def _scraped(cluster: ByHand) -> list[str]:
    """What the PodMonitors would find."""
    gateway, head = (cluster.rendered.pod(one).ports()["metrics"] for one in ("gateway", "head"))
    return [f"127.0.0.1:{port}" for port in (gateway, head, cluster.worker_metrics_port)]


def _questions() -> dict[str, str]:
    """What every panel shows, and what every alert compares with its threshold."""
    panels = {
        f"{name}, {panel.title}: {legend}": query.replace("$__rate_interval", "30s")
        for name, (_, panels) in DASHBOARDS.items()
        for panel in panels
        for query, legend in panel.queries
    }
    (group,) = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())["groups"]
    return panels | {rule["alert"]: rule["expr"].rsplit(" ", 2)[0] for rule in group["rules"]}


NO_DATA = {
    "speculation, Drafter alarms: {{replica}} {{alarm}}": "no drafter breaks in this run",
    "OutriderRequestsFail": "no request fails in this run",
    "OutriderOverloaded": "no request is refused for lack of room in this run",
}


def _start_prometheus(cluster: ByHand) -> int:
    """Its port."""
    (port,) = free_ports(1)
    scrape = {"job_name": "outrider", "scrape_interval": "1s", "static_configs": [{"targets": _scraped(cluster)}]}
    configuration = cluster.folder / "prometheus.yml"
    configuration.write_text(yaml.safe_dump({"scrape_configs": [scrape]}))
    options = [f"--config.file={configuration}", f"--storage.tsdb.path={cluster.folder}/tsdb"]
    cluster.start("prometheus", [str(PROMETHEUS), *options, f"--web.listen-address=127.0.0.1:{port}"])
    return port


@pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed (Debian: prometheus)")
def test_every_panel_and_alert_is_fed_by_a_real_prometheus(cluster: ByHand) -> None:
    port, unanswered = _start_prometheus(cluster), _questions()
    until = time.monotonic() + 120  # one alert looks at whole minutes
    known, stranger = _security(cluster), dataclasses.replace(_security(cluster), token=None)
    with Client(_address(cluster), known) as client, Client(_address(cluster), stranger) as refused:
        while set(unanswered) != set(NO_DATA) and time.monotonic() < until:
            client.generate("def f(" * 30, max_tokens=12, seed=3)
            with contextlib.suppress(NotAllowedError):
                refused.model()
            with contextlib.suppress(OSError):  # it is not up yet
                unanswered = {title: query for title, query in unanswered.items() if not _ask_prometheus(port, query)}

    assert set(unanswered) == set(NO_DATA), (unanswered, cluster.log("prometheus")[-500:])


def test_at_the_end_gateways_drain_and_rays_head_waits_for_the_controller(cluster: ByHand) -> None:
    hook = cluster.container("head", "ray-head")["lifecycle"]["preStop"]["exec"]["command"]
    waiting = cluster.start("hook", hook)
    time.sleep(1.5)
    assert waiting.poll() is None, "Ray must stay while the controller does"

    cluster.containers["gateway"].send_signal(signal.SIGTERM)
    cluster.containers["controller"].send_signal(signal.SIGTERM)

    assert cluster.containers["gateway"].wait(60) == 0, cluster.log("gateway")
    assert cluster.containers["controller"].wait(60) == 0, cluster.log("controller")
    assert waiting.wait(60) == 0
    assert not re.search(r"Traceback|or-[\w-]{20}", cluster.log("gateway") + cluster.log("controller"))
