"""Deadlines of what a device waits for.

A host that waits for a NCCL collective with a timeout polls for it, and holds up everything that it could enqueue
meanwhile; one that waits without a timeout returns at once, and the device waits instead, for ever if a peer is gone.
So hosts wait without, and a thread beside keeps the deadlines.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

_LOOKS_EVERY_S = 0.2


class Work(Protocol):
    """A collective under way, as torch.distributed returns it."""

    def is_completed(self) -> bool: ...


class _Watched(NamedTuple):
    work: Work
    until: float
    what: str


class Watchdog:
    """Calls `expired` with what was waited for, from its own thread, once something is not done by its deadline.

    It cannot take back what the device has already made of the missing part: `expired` is to end the process.
    """

    def __init__(self, expired: Callable[[str], None], looks_every_s: float = _LOOKS_EVERY_S) -> None:
        self._expired, self._looks_every_s = expired, looks_every_s
        self._watched: deque[_Watched] = deque()  # in the order of their start, which is that of their end
        self._closing = threading.Event()
        threading.Thread(target=self._run, daemon=True, name="watchdog").start()

    def watch(self, work: Work, timeout_s: float, what: str) -> None:
        self._watched.append(_Watched(work, time.monotonic() + timeout_s, what))

    def close(self) -> None:
        """Nothing is watched any more. May be called twice."""
        self._closing.set()

    def _run(self) -> None:
        while not self._closing.wait(self._looks_every_s):
            while self._watched and self._watched[0].work.is_completed():
                self._watched.popleft()
            if self._watched and time.monotonic() > self._watched[0].until:
                self._expired(self._watched[0].what)
                return
