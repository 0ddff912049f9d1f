"""Making sure that a process is gone, on this node or another."""

import contextlib
import os
import signal
import time
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from outrider.workers.errors import OutriderError

GONE_TIMEOUT_S = 8.0


def end_process(node_id: str, pid: int) -> None:
    """Kills one of Ray's workers, also a frozen one, and returns when it is gone. OutriderError if it will not go."""
    if node_id == ray.get_runtime_context().get_node_id():
        _end_here(pid)
        return
    if all(node["NodeID"] != node_id or not node["Alive"] for node in ray.nodes()):
        return  # its node went, and it with it
    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    ray.get(
        ray.remote(_end_here).options(num_cpus=0, scheduling_strategy=there).remote(pid), timeout=2 * GONE_TIMEOUT_S
    )


def _end_here(pid: int) -> None:
    if _is_ray_worker(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + GONE_TIMEOUT_S
    while _is_ray_worker(pid):
        if time.monotonic() > until:
            raise OutriderError(f"process {pid} is still there {GONE_TIMEOUT_S:.0f} s after SIGKILL")
        time.sleep(0.02)


def _is_ray_worker(pid: int) -> bool:
    """Whether one of Ray's workers has this number, and not some later process: numbers are used again."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    ends = not command  # has given its memory back, and is not gone yet
    return state not in "ZX" and (ends or command.startswith(b"ray::"))
