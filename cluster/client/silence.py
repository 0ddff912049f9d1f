"""Detects a gateway that stops sending heartbeats: frozen, or cut off from the network."""

import threading
import time
from collections.abc import Callable

HEARTBEAT_S = 2.0  # requested from gateways
SILENCE_S = 8.0  # then the gateway counts as lost


class SilenceWatch:
    """For synchronous code, which blocks inside gRPC: a thread calls `cancel` after SILENCE_S without a message.

    It starts at the first heartbeat, since an older gateway sends none.
    """

    def __init__(self, cancel: Callable[[], object]) -> None:
        self.silent = False
        self._cancel = cancel
        self._heard_at = 0.0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def heard(self, *, heartbeat: bool) -> None:
        self._heard_at = time.monotonic()
        if heartbeat and self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="silence-watch", daemon=True)
            self._thread.start()

    def end(self) -> None:
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(max(0.0, self._heard_at + SILENCE_S - time.monotonic())):
            if time.monotonic() >= self._heard_at + SILENCE_S:
                self.silent = True
                self._cancel()
                return
