"""Suspects: requests whose earlier replicas failed while computing their next token. Only one at a time may run.

So if the replica fails again, the running suspect is the cause. A suspect is cleared when it gets a token here.
"""

from collections import deque
from collections.abc import Callable, Sequence

from outrider.workers.types.requests.request import SequenceChunk


class Suspects:
    """A queue of suspects. Used by the engine's thread only."""

    def __init__(self, release: Callable[[str], bool]) -> None:
        """`release` allows a request to be scheduled, by id; it returns False if the request has ended."""
        self._release = release
        self._waiting: deque[str] = deque()
        self._running: str | None = None

    def wait(self, request_id: str) -> None:
        """Queues a suspect; releases it at once if no other suspect is running."""
        self._waiting.append(request_id)
        self._release_next()

    def observe(self, chunks: Sequence[SequenceChunk]) -> None:
        """Clears suspects that got a token or ended, and releases the next."""
        if self._running is None:
            return
        for chunk in chunks:
            if chunk.request_id in self._waiting:  # cancelled
                self._waiting.remove(chunk.request_id)
            elif chunk.request_id == self._running:
                self._running = None
        self._release_next()

    def _release_next(self) -> None:
        while self._running is None and self._waiting:
            request_id = self._waiting.popleft()
            self._running = request_id if self._release(request_id) else None
