"""The ranks of a benchmark, each a process of its own, and what they print."""

import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from benchmarks.common.results import ROOT


def environment(**settings: str) -> dict[str, str]:
    """For a rank that computes on one thread and finds outrider and the benchmarks."""
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", **settings}


def printed_by(commands: Sequence[Sequence[str]], env: Mapping[str, str], limit_s: float) -> list[str]:
    """What each of `commands` prints, all running at once. subprocess.TimeoutExpired if they are not done in `limit_s`.

    None is left running.
    """
    end = time.monotonic() + limit_s
    with ExitStack() as running:
        processes = [running.enter_context(_running(command, env)) for command in commands]
        return [process.communicate(timeout=max(end - time.monotonic(), 0.0))[0] for process in processes]


@contextmanager
def _running(command: Sequence[str], env: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
