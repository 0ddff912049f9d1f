"""Starts and watches this machine's training ranks as processes. Does not know what they compute."""

import contextlib
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outrider.workers.serving.local import free_port, rank_environment
from outrider.workers.training.distill.rank import TrainingRank
from outrider.workers.training.distill.settings import TrainingSettings
from outrider.workers.types.errors import OutriderError

_WATCH_EVERY_S = 0.25
_STOP_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """The machines of the ranks. With several, the same command runs on each, with its own `number`."""

    ranks: int = 1  # per machine
    count: int = 1
    number: int = 0
    master_address: str = "127.0.0.1"
    master_port: int = 0  # 0: a free one, on a single machine

    def __post_init__(self) -> None:
        if self.ranks < 1 or self.count < 1 or not 0 <= self.number < self.count:
            raise ValueError(f"ranks and nodes must be at least 1, and node_rank in 0..nodes-1, got {self}")
        if self.count > 1 and (self.master_port == 0 or self.master_address == "127.0.0.1"):
            raise ValueError("several nodes need --master HOST:PORT, an address and a port of node 0")

    @property
    def world_size(self) -> int:
        return self.ranks * self.count


def run_training(settings: TrainingSettings, machines: Machines, on_report: Callable[[dict[str, Any]], None]) -> None:
    """Trains to the end; `on_report` gets the reports of rank 0, on its machine.

    OutriderError names the rank that failed.

    No process is left when it returns or raises.
    """
    settings.check_world(machines.world_size)
    gang = _Gang(settings, machines)
    try:
        gang.watch(on_report)
    finally:
        gang.close()


class _Gang:
    def __init__(self, settings: TrainingSettings, machines: Machines) -> None:
        self._logs = Path(settings.work) / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._first = machines.number * machines.ranks
        self._reports: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        port = machines.master_port or free_port()
        environment = rank_environment(machines.ranks)
        self._processes: list[subprocess.Popen[str]] = []
        for local in range(machines.ranks):
            place = TrainingRank(
                settings=settings.to_json(),
                rank=self._first + local,
                world_size=machines.world_size,
                local_rank=local,
                master_address=machines.master_address,
                master_port=port,
            )
            self._processes.append(self._start(place, environment))
        listener = threading.Thread(target=self._listen, daemon=True, name="training-reports")
        listener.start()
        self._listener = listener

    def watch(self, on_report: Callable[[dict[str, Any]], None]) -> None:
        """Returns when all ranks have ended successfully."""
        while not self._have_ended():
            with contextlib.suppress(queue.Empty):
                on_report(self._reports.get(timeout=_WATCH_EVERY_S))
        self._listener.join()
        while not self._reports.empty():
            on_report(self._reports.get())

    def close(self) -> None:
        """Ends every rank. A healthy rank ends when its stdin closes."""
        for process in self._processes:
            if process.stdin and not process.stdin.closed:
                process.stdin.close()
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        for process in self._processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, place: TrainingRank, environment: dict[str, str]) -> subprocess.Popen[str]:
        with self._log(place.rank).open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "outrider.workers.training.distill.rank"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # the parent handles Ctrl-C
                env=environment,
            )
        assert process.stdin is not None
        process.stdin.write(place.to_json() + "\n")
        process.stdin.flush()
        return process

    def _listen(self) -> None:
        """Reads this machine's first rank. If that is not rank 0, it reports nothing."""
        stream = self._processes[0].stdout
        assert stream is not None
        for line in stream:
            self._reports.put(json.loads(line))

    def _have_ended(self) -> bool:
        codes = [process.poll() for process in self._processes]
        for local, code in enumerate(codes):
            if code not in (None, 0):
                raise OutriderError(self._explain(self._first + local, code))
        return all(code == 0 for code in codes)

    def _explain(self, rank: int, code: int | None) -> str:
        lines = self._log(rank).read_text(errors="replace").strip().splitlines()
        said = lines[-1] if lines else "it said nothing"
        return f"training rank {rank} ended with exit status {code}: {said} (all of it: {self._log(rank)})"

    def _log(self, rank: int) -> Path:
        return self._logs / f"rank-{rank}.log"
