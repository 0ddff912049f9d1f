"""Checks untrusted grammars, JSON schemas and regexes in separate processes, since a bad one may crash its process.

The processes run grammar_process.py; this module does not import the grammar library.
"""

import contextlib
import functools
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from pathlib import Path

from outrider.workers.types.errors import OverloadedError
from outrider.workers.types.requests.structured_outputs import StructuredOutputsParams

PROCESSES = 2
MOST_WAITING = 64
CPU_S = 2.0
ANSWER_TIMEOUT_S = 20.0  # wall time, longer than CPU_S since the machine may be busy
_START_TIMEOUT_S = 120.0  # a tokenizer of 128,000 tokens takes a second or two
_RETRY_AFTER_S = 1.0
_KEPT = 256  # answers
_COMMAND = (sys.executable, "-P", "-m", "outrider.workers.text.grammar_process")


class GrammarChecker:
    """Checks grammars for one tokenizer.json. Thread-safe. Its processes start with the first check."""

    def __init__(self, tokenizer_file: Path, cpu_s: float = CPU_S, *, most_waiting: int | None = MOST_WAITING) -> None:
        """`cpu_s`: CPU time limit for checking one grammar. `most_waiting`: most queued checks, more are refused.

        None: no limit, for requests that were accepted already.
        """
        self._most_waiting = most_waiting
        self._command = [*_COMMAND, str(tokenizer_file), str(cpu_s)]
        self._threads = ThreadPoolExecutor(PROCESSES, thread_name_prefix="grammar-check")
        self._idle: list[_Process] = []
        self._answers: OrderedDict[str, str | None] = OrderedDict()  # least recently used first
        self._waiting = 0
        self._closed = False
        self._lock = threading.Lock()  # protects the four fields above

    def check(self, params: StructuredOutputsParams) -> None:
        """Raises ValueError, in one line, if the constraint is malformed, not supported, or too expensive.

        Raises OverloadedError if too many checks are queued.
        """
        self.submit(params).result()

    def submit(self, params: StructuredOutputsParams) -> "Future[None]":
        """As `check`, with the error in the future. Cancelling it stops the work."""
        key, result = repr(params), Future[None]()
        with self._lock:
            known, problem = key in self._answers, self._answers.get(key)
            full = not known and self._most_waiting is not None and self._waiting >= self._most_waiting
            self._waiting += not known and not full
        if known:
            _settle(result, problem)
        elif full:
            result.set_exception(OverloadedError(f"{self._most_waiting} grammars wait for their check", _RETRY_AFTER_S))
        else:
            self._threads.submit(self._run, key, params, result)
        return result

    def _run(self, key: str, params: StructuredOutputsParams, result: "Future[None]") -> None:
        with self._lock:
            known, problem = (
                key in self._answers,
                self._answers.get(key),
            )  # checked meanwhile for another
        try:
            if known:
                _settle(result, problem)
            elif not result.cancelled():
                self._ask(key, params, result)
        except OSError as error:
            with contextlib.suppress(InvalidStateError):
                result.set_exception(OverloadedError(f"structured_outputs cannot be checked: {error}", _RETRY_AFTER_S))
        finally:
            with self._lock:
                self._waiting -= 1

    def _ask(self, key: str, params: StructuredOutputsParams, result: "Future[None]") -> None:
        process = self._process()
        result.add_done_callback(functools.partial(_kill_if_cancelled, process))
        try:
            problem = process.ask(params)
        except OSError:
            process.discard()
            raise
        if not result.set_running_or_notify_cancel():  # after this it cannot be cancelled, so the process is not killed
            process.discard()
            return
        self._keep(key, problem)
        self._give_back(process)
        _settle(result, problem)

    def _give_back(self, process: "_Process") -> None:
        with self._lock:
            if process.alive and not self._closed:
                self._idle.append(process)
                return
        process.discard()

    def _process(self) -> "_Process":
        while True:
            with self._lock:
                process = self._idle.pop() if self._idle else None
            if process is None:
                return _Process(self._command)
            if process.alive:
                return process
            process.discard()

    def _keep(self, key: str, problem: str | None) -> None:
        with self._lock:
            self._answers[key] = problem
            if len(self._answers) > _KEPT:
                self._answers.popitem(last=False)

    def close(self) -> None:
        """Ends idle processes at once, and busy ones after their check. No further checks are possible."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for process in idle:
            process.discard()


def _kill_if_cancelled(process: "_Process", result: "Future[None]") -> None:
    if result.cancelled():
        process.kill()


def _settle(result: "Future[None]", problem: str | None) -> None:
    with contextlib.suppress(InvalidStateError):  # cancelled
        if problem is None:
            result.set_result(None)
        else:
            result.set_exception(ValueError(f"structured_outputs cannot be followed: {problem}"))


class _Process:
    """One checking process. Used by one thread, except `kill`."""

    def __init__(self, command: list[str]) -> None:
        """Starts the process and waits until it has loaded the tokenizer. Raises OSError on failure."""
        self._process = subprocess.Popen(
            command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True, env={**os.environ, "MALLOC_ARENA_MAX": "1"},
        )  # fmt: skip  # malloc arenas of threads would count as memory of the grammar
        if self._line(_START_TIMEOUT_S) is None:
            self.discard()
            raise OSError(f"the process that checks grammars ended with status {self._process.returncode} at its start")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.kill()

    def discard(self) -> None:
        self.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def ask(self, params: StructuredOutputsParams) -> str | None:
        """The grammar's problem; None if it has none. Raises OSError if the process failed for another reason."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the process has ended: reading its answer reports that
            self._process.stdin.write(json.dumps(params.to_dict()).encode() + b"\n")
        answer = self._line(ANSWER_TIMEOUT_S)
        if answer is None:
            return _cause(self._process.wait())
        problem = json.loads(answer)
        return None if problem is None else " ".join(problem.split())[:500]

    def _line(self, timeout_s: float) -> bytes | None:
        """The next line of output; None if the process ended. On timeout kills it and raises OSError."""
        assert self._process.stdout is not None
        until, line = time.monotonic() + timeout_s, b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, until - time.monotonic())):
                    self.kill()
                    raise OSError(f"no answer within {timeout_s:g} s")
                some = self._process.stdout.read(65536)
                if not some:
                    return None
                line += some
        return line


def _cause(status: int) -> str:
    """Describes why a grammar ended its process. Raises OSError if the status has another cause."""
    if status == -signal.SIGPROF:
        return "compiling it takes too long"
    if status in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, 1):
        return "compiling it needs too much memory, or it is nested too deeply"
    raise OSError(f"the process that checks grammars ended with status {status}")
