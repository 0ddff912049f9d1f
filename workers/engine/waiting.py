"""The sequences that are not admitted: first come, first served, whoever was preempted back at its old place.

Requests that had tokens at a replica that was lost come first: their clients would else fall silent for as long as the
whole queue takes.
"""

from bisect import bisect_left, insort

from outrider.workers.types.sequence import Sequence


def _turn(sequence: Sequence) -> tuple[bool, int]:
    under_way = any(output.token_ids for output in sequence.request.resumed)
    return not under_way, sequence.sequence_id


class WaitingQueue:
    """Ordered by turn. Beside it, what is held: outputs until their first has computed the prompt that they share,
    and all of a request's until its grammar is there."""

    def __init__(self) -> None:
        self._queue: list[Sequence] = []
        self._held: dict[str, list[Sequence]] = {}

    def __len__(self) -> int:
        """Sequences that may be admitted now."""
        return len(self._queue)

    @property
    def held(self) -> int:
        return sum(map(len, self._held.values())) if self._held else 0

    @property
    def head(self) -> Sequence:
        return self._queue[0]

    def push(self, sequence: Sequence) -> None:
        """Queues the sequence at its place by turn. A preempted one is older than those never admitted."""
        insort(self._queue, sequence, key=_turn)

    def pop(self) -> Sequence:
        return self._queue.pop(0)

    def hold(self, sequence: Sequence) -> None:
        self._held.setdefault(sequence.request.request_id, []).append(sequence)

    def let_go(self, request_id: str) -> None:
        """Queues what was held for the request."""
        for sequence in self.take_held(request_id):
            self.push(sequence)

    def take_held(self, request_id: str) -> list[Sequence]:
        """What was held for the request, and waits nowhere from now on."""
        return self._held.pop(request_id, [])

    def discard(self, sequence: Sequence) -> None:
        """Takes the sequence out, wherever it waits; nothing happens if it does not."""
        index = bisect_left(self._queue, _turn(sequence), key=_turn)
        if index < len(self._queue) and self._queue[index] is sequence:
            del self._queue[index]
        held = self._held.get(sequence.request.request_id)
        if held and sequence in held:
            held.remove(sequence)
            if not held:
                del self._held[sequence.request.request_id]
