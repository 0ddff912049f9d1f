"""Runs the ranks of one replica as processes of this machine, without Ray: for LLM with several ranks, and for tests.

It owns the processes: if one dies or freezes, all are killed, and `failure` names that rank and the reason. The
processes do not import the caller's main module.
"""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import outrider
from outrider.workers.config import EngineConfig
from outrider.workers.loading.rank_spec import RankSpec
from outrider.workers.serving.rank_status import RankStatus
from outrider.workers.serving.rpc.cluster_key import draw_key
from outrider.workers.types.errors import OutriderError

SILENCE_S = 8.0  # a rank reports every second; after this long without a report it counts as frozen
LOADING_SILENCE_S = 60.0  # the same while loading, when imports and large reads may delay reports
WATCH_EVERY_S = 0.25
_STOP_TIMEOUT_S = 10.0


@dataclass(slots=True)
class _Member:
    process: subprocess.Popen[str]
    status: RankStatus
    heard_at: float


class LocalGang:
    """Starts the ranks and waits until all are ready. If a rank fails, raises OutriderError with its error message."""

    def __init__(
        self,
        config: EngineConfig,
        layer_splits: tuple[tuple[int, int], ...],
        *,
        on_progress: Callable[[float], None] = lambda share: None,
    ) -> None:
        self.failure = ""
        self._closing, self._failed = threading.Event(), threading.Event()
        self._spec = RankSpec(
            engine=config,
            layer_splits=layer_splits,
            world_size=config.world_size,
            master_port=free_port(),
            service_host="127.0.0.1",
            service_key=draw_key(),
        )
        self._members = [self._start(rank) for rank in range(self._spec.world_size)]
        for member in self._members:
            threading.Thread(target=_listen, args=(member,), daemon=True, name="rank-listener").start()
        self._wait_until_ready(on_progress)
        self._watcher = threading.Thread(target=self._watch, daemon=True, name="rank-watcher")
        self._watcher.start()

    @property
    def statuses(self) -> list[RankStatus]:
        return [member.status for member in self._members]

    @property
    def leader_address(self) -> str:
        return self._members[0].status.service_address

    @property
    def key(self) -> str:
        """The cluster key that the leader requires, since other users of this machine can reach its port."""
        return self._spec.service_key

    def failure_within(self, timeout_s: float) -> str:
        """Which rank failed and why, if that is known within `timeout_s`; else ""."""
        self._failed.wait(timeout_s)
        return self.failure

    def close(self) -> None:
        """Ends every rank: a healthy rank exits when its stdin is closed, others are killed."""
        self._closing.set()
        for member in self._members:
            if member.process.stdin and not member.process.stdin.closed:
                member.process.stdin.close()
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        for member in self._members:
            _end(member.process, deadline)

    def _start(self, rank: int) -> _Member:
        process = subprocess.Popen(
            [sys.executable, "-m", "outrider.workers.serving.rank"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the caller to handle; a closed stdin ends the rank
            env=rank_environment(self._spec.world_size),
        )
        assert process.stdin is not None
        process.stdin.write(replace(self._spec, rank=rank, local_rank=rank).to_json() + "\n")
        process.stdin.flush()
        return _Member(process=process, status=RankStatus(), heard_at=time.monotonic())

    def _wait_until_ready(self, on_progress: Callable[[float], None]) -> None:
        while not all(member.status.state == "ready" for member in self._members):
            on_progress(min(member.status.loaded for member in self._members))
            if reason := self._first_failure(LOADING_SILENCE_S):
                self.close()
                raise OutriderError(reason)
            time.sleep(WATCH_EVERY_S / 5)
        on_progress(1.0)

    def _watch(self) -> None:
        while not self._closing.wait(WATCH_EVERY_S):
            reason = self._first_failure(SILENCE_S)
            if reason:
                self._kill()
                self.failure = reason
                self._failed.set()
                return

    def _first_failure(self, silence_s: float) -> str:
        """Why the replica failed, or "". A rank's own error message is preferred to its exit status."""
        for member in self._members:
            if member.status.state == "failed":
                return member.status.error
        for rank, member in enumerate(self._members):
            name = f"{self._spec.describe(rank)}, pid {member.process.pid}"
            if (code := member.process.poll()) is not None:
                return f"{name} ended with exit status {code}"
            if (silent := time.monotonic() - member.heard_at) > silence_s:
                return f"{name} stopped answering for {silent:.1f} s"
        return ""

    def _kill(self) -> None:
        for member in self._members:
            member.process.kill()
            member.process.wait()


def _listen(member: _Member) -> None:
    assert member.process.stdout is not None
    for line in member.process.stdout:
        member.status, member.heard_at = RankStatus.from_json(line), time.monotonic()


def rank_environment(local_ranks: int) -> dict[str, str]:
    """Environment of a rank: its share of the cores, and OMP settings that must be set before torch is imported."""
    source = str(Path(outrider.__file__).parent.parent)
    cores = len(os.sched_getaffinity(0))
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")])),
        "OMP_NUM_THREADS": str(max(1, cores // local_ranks)),
        "OMP_WAIT_POLICY": "passive",
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end(process: subprocess.Popen[str], deadline: float) -> None:
    try:
        process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
