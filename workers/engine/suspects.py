"""Requests that may be what ended the replicas they ran on: each computes its first token here alone among such.

So when a replica ends, whoever was only beside the culprit is not taken for it, whichever gateway it came from.
"""

from collections import deque
from collections.abc import Callable, Sequence

from outrider.workers.types.request import SequenceChunk


class Suspects:
    """Belongs to the engine's thread."""

    def __init__(self, release: Callable[[str], bool]) -> None:
        """`release`: a request, by its id, may begin; False if it has ended meanwhile."""
        self._release = release
        self._waiting: deque[str] = deque()
        self._trying: str | None = None

    def wait(self, request_id: str) -> None:
        """Released when it is its turn, which may be at once."""
        self._waiting.append(request_id)
        self._go_on()

    def hear(self, chunks: Sequence[SequenceChunk]) -> None:
        """What requests gained, or how they ended: a request that has had a token is no suspect."""
        if self._trying is None:
            return
        for chunk in chunks:
            if chunk.request_id in self._waiting:  # cancelled
                self._waiting.remove(chunk.request_id)
            elif chunk.request_id == self._trying:
                self._trying = None
        self._go_on()

    def _go_on(self) -> None:
        while self._trying is None and self._waiting:
            request_id = self._waiting.popleft()
            self._trying = request_id if self._release(request_id) else None
