"""Further nodes of a running Ray, on this machine, with GPUs that are not there."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field

import ray


@dataclass
class GpuNode:
    process: subprocess.Popen[bytes]
    domain: str
    node_id: str = ""  # Ray's, once it has joined


@dataclass
class GpuNodes:
    """Nodes that join the Ray at `address`, and leave it."""

    address: str
    nodes: list[GpuNode] = field(default_factory=list)

    def add(self, *gpus: int, domain: str = "") -> list[GpuNode]:
        """As many nodes, which are there when this returns."""
        added = []
        for count in gpus:  # one after another: raylets that start at once may choose the same ports
            known = {row["NodeID"] for row in ray.nodes() if row["Alive"]}
            node = GpuNode(self._start(count, domain), domain)
            self.nodes.append(node)
            node.node_id = self._joined(known, count)
            added.append(node)
        return added

    def _start(self, gpus: int, domain: str) -> "subprocess.Popen[bytes]":
        labels = ["--labels", f"ray.io/gpu-domain={domain}"] if domain else []
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--address", self.address, "--block"]
        command += ["--num-cpus", str(gpus), "--num-gpus", str(gpus), "--object-store-memory", str(80 * 2**20)]
        command += ["--resources", json.dumps({f"gpus_{gpus}": 1}), "--disable-usage-stats", *labels]
        return subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, env=os.environ
        )

    def _joined(self, known: set[str], gpus: int, within_s: float = 150.0) -> str:
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            for row in ray.nodes():
                if row["Alive"] and row["NodeID"] not in known and row["Resources"].get("GPU") == gpus:
                    return str(row["NodeID"])
            time.sleep(0.1)
        raise AssertionError(f"no node with {gpus} GPUs after {within_s} s")

    def remove(self, node: GpuNode) -> None:
        """As when its machine loses power."""
        os.killpg(node.process.pid, signal.SIGKILL)
        node.process.wait()
        self.nodes.remove(node)

    def close(self, within_s: float = 60.0) -> None:
        """Returns when Ray knows that they are gone: later tests see none of them."""
        gone = {node.node_id for node in self.nodes}
        for node in list(self.nodes):
            self.remove(node)
        until = time.monotonic() + within_s
        while any(row["Alive"] and row["Resources"].get("GPU") for row in ray.nodes()) and time.monotonic() < until:
            time.sleep(0.1)
        assert not gone & {row["NodeID"] for row in ray.nodes() if row["Alive"]}
