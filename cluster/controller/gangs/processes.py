"""Finds live actors and placement groups by name. Kills Ray worker processes on any node and waits for their end."""

import contextlib
import os
import signal
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import ray
from ray.util import placement_group_table
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from outrider.workers.types.errors import OutriderError

GONE_TIMEOUT_S = 8.0


def processes_of(actors: Collection[str]) -> Mapping[str, tuple[str, int]]:
    """Node id and pid of the live actors, from Ray's tables, since a frozen actor does not answer."""
    table = ray._private.state.actors().values()
    return {
        row["Name"]: (row["Address"]["NodeID"], row["Pid"])
        for row in table
        if row["Name"] in actors and row["State"] == "ALIVE"
    }


def live_groups(beginning: str) -> list[str]:
    """Names of the placement groups whose names start with `beginning`."""
    table = placement_group_table().values()
    return [str(row["name"]) for row in table if row["name"].startswith(beginning) and row["state"] != "REMOVED"]


def end_processes(processes: Iterable[tuple[str, int]]) -> None:
    """Kills Ray workers, given by node id and pid, also frozen ones. Returns when they have ended.

    Raises OutriderError if one does not end.
    """
    by_node = defaultdict(list)
    for node_id, pid in processes:
        by_node[node_id].append(pid)
    _end_here(by_node.pop(ray.get_runtime_context().get_node_id(), []))
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}  # processes on lost nodes have ended with them
    task = ray.remote(_end_here).options(num_cpus=0)
    ends = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote(pids)
        for node_id, pids in by_node.items()
        if node_id in alive
    ]
    ray.get(ends, timeout=2 * GONE_TIMEOUT_S)


def _end_here(pids: Sequence[int]) -> None:
    for pid in filter(_is_ray_worker, pids):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + GONE_TIMEOUT_S
    while left := [pid for pid in pids if _is_ray_worker(pid)]:
        if time.monotonic() > until:
            raise OutriderError(f"processes {left} are still there {GONE_TIMEOUT_S:.0f} s after SIGKILL")
        time.sleep(0.02)


def _is_ray_worker(pid: int) -> bool:
    """Whether this pid is a Ray worker. The system may have reused the number for another process."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    ends = not command  # its memory is freed, but the process has not ended yet
    return state not in "ZX" and (ends or command.startswith(b"ray::"))
