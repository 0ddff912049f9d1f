"""Deadlines for operations that the device waits for.

A host that waits for an NCCL collective with a timeout polls for it, and cannot enqueue other work meanwhile. Without
a timeout the call returns at once and the device waits instead, for ever if a peer is gone. So hosts wait without a
timeout, and a separate thread checks the deadlines.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

_POLL_INTERVAL_S = 0.2


class Work(Protocol):
    """A running collective, as torch.distributed returns it."""

    def is_completed(self) -> bool: ...


class _Watched(NamedTuple):
    work: Work
    until: float
    what: str


class Watchdog:
    """Calls `expired` with the operation's description, from its own thread, when a deadline has passed.

    Later device operations may already have used the incomplete data, so `expired` should end the process.
    """

    def __init__(self, expired: Callable[[str], None], poll_interval_s: float = _POLL_INTERVAL_S) -> None:
        self._expired, self._looks_every_s = expired, poll_interval_s
        self._watched: deque[_Watched] = deque()  # of several communicators, so they end in any order
        self._closing = threading.Event()
        threading.Thread(target=self._run, daemon=True, name="watchdog").start()

    def watch(self, work: Work, timeout_s: float, what: str) -> None:
        self._watched.append(_Watched(work, time.monotonic() + timeout_s, what))

    def close(self) -> None:
        """Stops watching. May be called twice."""
        self._closing.set()

    def _run(self) -> None:
        while not self._closing.wait(self._looks_every_s):
            for _ in range(len(self._watched)):
                each = self._watched.popleft()
                if each.work.is_completed():
                    continue
                if time.monotonic() > each.until:
                    self._expired(each.what)
                    return
                self._watched.append(each)
