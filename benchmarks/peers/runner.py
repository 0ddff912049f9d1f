"""One contestant's process: started once, asked many times, and idle in between (it waits for a line)."""

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from benchmarks.peers.contestants import CannotRaceError, Start
from benchmarks.peers.crowd import Moment, share_of_others

LOAD_TIMEOUT_S = 1800.0  # vLLM compiles for minutes
RUN_TIMEOUT_S = 900.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a run took, and what it said."""

    seconds_first: float
    seconds: float
    tokens: list[list[int]]
    others: float  # share of the machine's processor time that others took meanwhile


class Runner:
    """CannotRaceError, with the last line of its log, if it does not start or dies."""

    def __init__(self, name: str, start: Start, log: Path) -> None:
        self.name, self._log = name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                start.command,
                env=os.environ | start.env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.version: str = self._read(LOAD_TIMEOUT_S)["version"]

    def run(self, prompts: list[list[int]], max_tokens: int) -> Answer:
        answer, others = self.ask({"prompts": prompts, "max_tokens": max_tokens})
        return Answer(**answer, others=others)

    def ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], float]:
        """The answer, and the share of the machine's processor time that others took meanwhile."""
        assert self._process.stdin is not None
        began = Moment.now(self._process.pid)
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = self._read(RUN_TIMEOUT_S)
        return answer, share_of_others(began, Moment.now(self._process.pid))

    def close(self) -> None:
        """Ends it, at once if it does not end by itself."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with self._deadline(30):
            self._process.wait()

    def _read(self, timeout_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        with self._deadline(timeout_s):
            line = self._process.stdout.readline()
        if not line:
            self._process.kill()
            said = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
            raise CannotRaceError(f"{said[-1] if said else 'it died in silence'} (log: {self._log})")
        answer: dict[str, Any] = json.loads(line)
        return answer

    @contextmanager
    def _deadline(self, seconds: float) -> Iterator[None]:
        timer = threading.Timer(seconds, self._process.kill)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
