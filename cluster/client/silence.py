"""Detects a gateway that stops sending heartbeats because it is frozen or unreachable."""

import math
import threading
import time
from collections.abc import Callable

HEARTBEAT_S = 2.0  # requested from gateways
SILENCE_S = 8.0  # without a message, after which the gateway counts as lost


class SilenceWatch:
    """Calls `cancel` from a thread after SILENCE_S without a message. For synchronous code, which blocks inside gRPC.

    The thread starts at the first heartbeat, since older gateways send none.
    """

    def __init__(self, cancel: Callable[[], object]) -> None:
        self.silent = False
        self._cancel = cancel
        self._received_at = 0.0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def received(self, *, heartbeat: bool) -> None:
        self.resume()
        if heartbeat and self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="silence-watch", daemon=True)
            self._thread.start()

    def pause(self) -> None:
        """Stops the watch until `resume`, while the caller handles an event and reads no messages."""
        self._received_at = math.inf

    def resume(self) -> None:
        self._received_at = time.monotonic()

    def end(self) -> None:
        self._ended.set()

    def _watch(self) -> None:
        left_s = SILENCE_S
        while not self._ended.wait(min(left_s, SILENCE_S)):  # infinite while it is paused
            left_s = self._received_at + SILENCE_S - time.monotonic()
            if left_s <= 0:
                self.silent = True
                self._cancel()
                return
