"""A Ray of its own whose real autoscaler brings fake nodes: raylets on this machine, started and ended by it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from distributed.served import is_free

from outrider.cluster.gateway_process import free_port

ROOT = Path(__file__).parents[2]
HEAD_ID = "f" * 48 + "0" * 8  # what the fake provider takes for the head


class AutoscalingRay:
    """Nodes of `cores_per_node` cores come when something waits for them, and go when nothing has used them."""

    def __init__(self, *, cores_per_node: int, most_nodes: int, idle_s: float) -> None:
        directory = self._directory = Path(tempfile.mkdtemp(prefix="or-"))  # short: sockets are in it
        self.address = f"127.0.0.1:{free_port('127.0.0.1')}"
        config = directory / "autoscaling.json"
        config.write_text(json.dumps(_config(self.address, cores_per_node, most_nodes, idle_s)))
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
        command += ["--node-ip-address", "127.0.0.1", "--port", self.address.rpartition(":")[2], "--num-cpus", "0"]
        command += ["--object-store-memory", str(80 * 2**20), "--include-dashboard", "false"]
        command += ["--autoscaling-config", str(config), "--temp-dir", str(directory / "ray")]
        self._process = subprocess.Popen(
            command,
            env={
                **os.environ,
                "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}",
                "RAY_FAKE_CLUSTER": "1",
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._wait_until_it_answers()

    def _wait_until_it_answers(self, within_s: float = 60.0) -> None:
        until = time.monotonic() + within_s
        while is_free(self.address):
            assert time.monotonic() < until, f"no Ray at {self.address} after {within_s} s"
            time.sleep(0.2)

    def nodes(self) -> int:
        """Raylets beside the head's own."""
        children = psutil.Process(self._process.pid).children(recursive=True)
        return sum(_is_raylet(child) for child in children) - 1

    def wait_for_nodes(self, count: int, within_s: float = 120.0) -> None:
        until = time.monotonic() + within_s
        while self.nodes() != count:
            assert time.monotonic() < until, f"{self.nodes()} nodes after {within_s} s, not {count}"
            time.sleep(0.5)

    def close(self) -> None:
        """Ends every process that it started."""
        processes = psutil.Process(self._process.pid).children(recursive=True)
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        for process in processes:
            if process.is_running():
                process.kill()
        psutil.wait_procs(processes, timeout=20)
        shutil.rmtree(self._directory, ignore_errors=True)


def _is_raylet(process: psutil.Process) -> bool:
    try:
        return process.name() == "raylet" and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _config(address: str, cores_per_node: int, most_nodes: int, idle_s: float) -> dict[str, Any]:
    return {
        "cluster_name": "fake",
        "max_workers": most_nodes,
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": idle_s / 60,
        "docker": {},
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": address,
        },
        "auth": {},
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {
                "resources": {"CPU": cores_per_node, "object_store_memory": 80 * 2**20},
                "node_config": {},
                "min_workers": 0,
                "max_workers": most_nodes,
            },
        },
        "head_node": {},
        "worker_nodes": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }
