"""Other ranks for tests: processes forked from one in which torch is loaded, so that each is there at once.

A partner runs a module's `main` as if it had been started as a program: with arguments, a standard input that stays
open, and a standard output to read from.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import TextIO

import pytest

_CONTEXT = multiprocessing.get_context("forkserver")
_LOADED = ["torch", *(f"distributed.{name}_partner" for name in ("link", "collectives", "deep_ep", "lanes"))]


class Partner:
    """A process; its methods are those of subprocess.Popen."""

    def __init__(self, main: Callable[[], None], *arguments: str, paths: Sequence[str] = ()) -> None:
        """`paths` come first on its own."""
        _prepare()
        heard, self._told = _CONTEXT.Pipe(duplex=False)
        said, saying = _CONTEXT.Pipe(duplex=False)
        self._process = _CONTEXT.Process(target=_run, args=(main, arguments, paths, heard, saying), daemon=True)
        self._process.start()
        for theirs in (heard, saying):
            theirs.close()
        self.stdout: TextIO = os.fdopen(os.dup(said.fileno()))
        said.close()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout_s: float = 60.0) -> int:
        self._process.join(timeout_s)
        assert self._process.exitcode is not None, f"it did not end within {timeout_s} s"
        return self._process.exitcode

    def send_signal(self, sign: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, sign)

    def kill(self) -> None:
        self._process.kill()


def _prepare() -> None:
    """The process that others are forked from, which lives as long as this one."""
    _CONTEXT.set_forkserver_preload(_LOADED)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        environment.setenv("OMP_NUM_THREADS", "1")
        environment.setenv("OMP_WAIT_POLICY", "passive")
        forkserver.ensure_running()


def _run(
    main: Callable[[], None], arguments: Sequence[str], paths: Sequence[str], heard: Connection, saying: Connection
) -> None:
    os.dup2(heard.fileno(), 0)
    os.dup2(saying.fileno(), 1)
    saying.close()
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115  # for good
    sys.argv[1:] = arguments
    sys.path[:0] = paths
    main()
    sys.stdout.flush()
