"""Runs what the chart renders on this machine, as processes: Ray's nodes, controller, gateway, probes and test.

What a cluster does with the manifests is done by hand: names become addresses, mounted files a folder, pods processes.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import psutil
import ray
from grpc_health.v1 import health_pb2, health_pb2_grpc
from helm.rendering import NAMESPACE, RELEASE, Object, Rendered

SOURCE = Path(__file__).resolve().parents[2] / "src"
BIN = Path(sys.executable).parent
MARK = "OUTRIDER_TEST_RUN"
Paths = Mapping[str, bytes]  # mounted files: path in the container -> content


def free_ports(count: int) -> list[int]:
    """All different, none of them taken now."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


class ByHand:
    """One rendering, running. A context manager: nothing that it started is left."""

    def __init__(self, rendered: Rendered, files: Paths) -> None:
        self.rendered = rendered
        self.folder = Path(tempfile.mkdtemp(prefix="or-"))  # Ray's sockets must have short names
        self.worker_agent_port = self.worker_metrics_port = 0
        self.containers: dict[str, subprocess.Popen[bytes]] = {}
        self.ip = ray.util.get_node_ip_address()
        self._mark = uuid.uuid4().hex
        self._environment = {
            **os.environ,
            MARK: self._mark,
            "PYTHONPATH": str(SOURCE),
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": uuid.uuid4().hex * 2,
            "RAY_USAGE_STATS_ENABLED": "0",
            "POD_IP": self.ip,
        }
        for path, content in files.items():
            place = Path(self.here(path))
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)

    def here(self, text: str) -> str:
        """A container's words as they are on this machine."""
        for there, replacement in (
            ("/etc/outrider", f"{self.folder}/etc"),
            ("$(POD_IP)", self.ip),
            (f"{RELEASE}-controller.{NAMESPACE}.svc", self.ip),
            (f"{RELEASE}-gateway.{NAMESPACE}.svc", "127.0.0.1"),
        ):
            text = text.replace(there, replacement)
        return text

    def __enter__(self) -> "ByHand":
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self._marked():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _marked(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self._mark:
                    yield process

    def start(self, name: str, command: Sequence[str]) -> "subprocess.Popen[bytes]":
        """Its output goes to a file, which `log` reads."""
        with (self.folder / f"{name}.log").open("wb") as log:
            words = [self.here(word) for word in command]
            return subprocess.Popen(words, env=self._environment, stdout=log, stderr=log, start_new_session=True)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def run(
        self, command: Sequence[str], environment: Sequence[Object] = (), **more: str
    ) -> "subprocess.CompletedProcess[str]":
        """To its end, with a container's own variables, and more."""
        own = {one["name"]: self.here(one["value"]) for one in environment if "value" in one}
        words = [self.here(word) for word in command]
        return subprocess.run(
            words, env={**self._environment, **own, **more}, capture_output=True, text=True, timeout=60
        )

    def start_ray(self) -> None:
        """The head, and one worker of the group, with the parameters that KubeRay would pass on."""
        spec = self.rendered.one("RayCluster")["spec"]
        head = spec["headGroupSpec"]["rayStartParams"]
        (group,) = spec["workerGroupSpecs"]
        self._ray("head", {**head, "head": None, "temp-dir": str(self.folder / "ray")})
        self.wait_for_probe("head", "ray-head", "startupProbe")
        own = {name: str(port) for name, port in zip(_WORKERS_OWN, free_ports(len(_WORKERS_OWN)), strict=True)}
        workers = {"min-worker-port": "0", "max-worker-port": "0"}  # here two nodes share one machine
        self._ray("worker", {**group["rayStartParams"], **own, **workers, "address": f"{self.ip}:{head['port']}"})
        self.worker_agent_port, self.worker_metrics_port = (int(own[name]) for name in _WORKERS_OWN[-2:])

    def _ray(self, name: str, params: Mapping[str, str | None]) -> None:
        # KubeRay gives switches without a value, where it is "true".
        options = [
            f"--{option}" if value in (None, "true") else f"--{option}={value}" for option, value in params.items()
        ]
        self.start(name, ["ray", "start", "--block", f"--node-ip-address={self.ip}", *options])

    def start_container(self, component: str, name: str) -> None:
        """Started again when it ends, as a kubelet would, while a probe is waited for."""
        self.containers[name] = self.start(name, self.container(component, name)["command"])

    def _revive(self) -> None:
        for component, name in (("head", "controller"), ("gateway", "gateway")):
            if name in self.containers and self.containers[name].poll() is not None:
                self.start_container(component, name)

    def container(self, component: str, name: str) -> dict[str, Any]:
        (found,) = [one for one in self.rendered.pod(component).spec["containers"] if one["name"] == name]
        return found

    def probe(self, component: str, container: str, probe: str) -> bool:
        """As a kubelet asks."""
        asked = self.container(component, container)[probe]
        if "exec" in asked:
            return self.run(asked["exec"]["command"]).returncode == 0
        return _serving(f"127.0.0.1:{asked['grpc']['port']}", self.ip, asked["grpc"].get("service", ""))

    def wait_for_probe(self, component: str, container: str, probe: str, within_s: float = 90) -> None:
        until = time.monotonic() + within_s
        while not self.probe(component, container, probe):
            assert time.monotonic() < until, f"{component}/{container}: {probe} fails\n{self._logs()}"
            self._revive()
            time.sleep(0.2)

    def _logs(self) -> str:
        return "\n".join(f"{path.name}:\n{path.read_text()[-700:]}" for path in self.folder.glob("*.log"))


_WORKERS_OWN = (
    "node-manager-port",
    "object-manager-port",
    "runtime-env-agent-port",
    "dashboard-agent-grpc-port",
    "dashboard-agent-listen-port",
    "metrics-export-port",
)


def _serving(address: str, ip: str, service: str) -> bool:
    for host in ("127.0.0.1", ip):  # a kubelet asks the pod's address, whichever it listens on
        with grpc.insecure_channel(address.replace("127.0.0.1", host)) as channel:
            try:
                request = health_pb2.HealthCheckRequest(service=service)
                answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=2)
            except grpc.RpcError:
                continue
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
    return False
