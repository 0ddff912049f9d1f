"""Delivers chunks to the callbacks that their requests were submitted with. Knows nothing of rounds."""

from collections import defaultdict
from collections.abc import Sequence

from outrider.workers.engine.handle import Deliver
from outrider.workers.types.requests.request import Request, SequenceChunk


class Subscribers:
    """The callback of each live request. Used by the engine's thread only."""

    def __init__(self) -> None:
        self._live: dict[str, tuple[Deliver, int]] = {}  # by request id: callback, and number of running outputs
        self._held: list[SequenceChunk] = []

    def add(self, request: Request, deliver: Deliver) -> None:
        self._live[request.request_id] = (deliver, len(request.outputs))

    def deliver(self, chunks: Sequence[SequenceChunk]) -> None:
        """Calls each callback once with its chunks, including held ones. Removes requests whose outputs all ended."""
        chunks, self._held = [*self._held, *chunks], []
        by_subscriber: dict[Deliver, list[SequenceChunk]] = defaultdict(list)
        for chunk in chunks:
            by_subscriber[self._count_down(chunk)].append(chunk)
        for deliver, own in by_subscriber.items():
            deliver(own)

    def hold(self, chunks: Sequence[SequenceChunk]) -> None:
        """Keeps the chunks for the next call of `deliver`."""
        self._held += chunks

    def end_all(self, reason: str) -> None:
        """Sends every live request its one error chunk."""
        ended = [SequenceChunk(request_id=request_id, error=reason, engine_lost=True) for request_id in self._live]
        self.deliver(ended)

    def _count_down(self, chunk: SequenceChunk) -> Deliver:
        deliver, running = self._live.pop(chunk.request_id)
        running -= chunk.finish_reason is not None
        if running and not chunk.error:
            self._live[chunk.request_id] = (deliver, running)
        return deliver
