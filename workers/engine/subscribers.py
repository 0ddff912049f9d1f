"""Who hears of which request: hands each round's chunks to those who submitted. Knows nothing of rounds."""

from collections import defaultdict
from collections.abc import Sequence

from outrider.workers.engine.handle import Deliver
from outrider.workers.engine.request import Request, SequenceChunk


class Subscribers:
    """Live requests, and where their chunks go. Belongs to the engine's thread."""

    def __init__(self) -> None:
        self._live: dict[str, tuple[Deliver, int]] = {}  # by request id: where to, and outputs still running

    def add(self, request: Request, deliver: Deliver) -> None:
        self._live[request.request_id] = (deliver, request.params.n)

    def deliver(self, chunks: Sequence[SequenceChunk]) -> None:
        """One call per subscriber. A request whose outputs have all ended is forgotten."""
        by_subscriber: dict[Deliver, list[SequenceChunk]] = defaultdict(list)
        for chunk in chunks:
            by_subscriber[self._count_down(chunk)].append(chunk)
        for deliver, own in by_subscriber.items():
            deliver(own)

    def end_all(self, reason: str) -> None:
        """Every live request gets its one error chunk."""
        self.deliver([SequenceChunk(request_id=request_id, error=reason) for request_id in list(self._live)])

    def _count_down(self, chunk: SequenceChunk) -> Deliver:
        deliver, running = self._live.pop(chunk.request_id)
        running -= chunk.finish_reason is not None
        if running and not chunk.error:
            self._live[chunk.request_id] = (deliver, running)
        return deliver
