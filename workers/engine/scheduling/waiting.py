"""The queue of sequences that are not admitted: first come, first served. A preempted sequence keeps its place.

Requests that had tokens on a failed replica come first, so that their streams do not stall for the whole queue.
"""

from bisect import bisect_left, insort

from outrider.workers.types.rounds.sequence import Sequence


def _turn(sequence: Sequence) -> tuple[bool, int]:
    has_tokens = any(output.token_ids for output in sequence.request.resumed)
    return not has_tokens, sequence.sequence_id


class WaitingQueue:
    """Waiting sequences in order, and held ones, which may not be admitted yet.

    Held are outputs whose shared prompt output 0 has not computed yet, and requests whose grammar is not compiled yet.
    """

    def __init__(self) -> None:
        self._queue: list[Sequence] = []
        self._held: dict[str, list[Sequence]] = {}

    def __len__(self) -> int:
        """Number of sequences that may be admitted; held ones do not count."""
        return len(self._queue)

    @property
    def held(self) -> int:
        return sum(map(len, self._held.values())) if self._held else 0

    @property
    def head(self) -> Sequence:
        return self._queue[0]

    def push(self, sequence: Sequence) -> None:
        """Inserts the sequence in order; a preempted one precedes those never admitted."""
        insort(self._queue, sequence, key=_turn)

    def pop(self) -> Sequence:
        return self._queue.pop(0)

    def hold(self, sequence: Sequence) -> None:
        self._held.setdefault(sequence.request.request_id, []).append(sequence)

    def release_held(self, request_id: str) -> None:
        """Moves the request's held sequences to the queue."""
        for sequence in self.take_held(request_id):
            self.push(sequence)

    def take_held(self, request_id: str) -> list[Sequence]:
        """Removes and returns the request's held sequences."""
        return self._held.pop(request_id, [])

    def discard(self, sequence: Sequence) -> None:
        """Removes a waiting or held sequence; ignores others."""
        index = bisect_left(self._queue, _turn(sequence), key=_turn)
        if index < len(self._queue) and self._queue[index] is sequence:
            del self._queue[index]
        held = self._held.get(sequence.request.request_id)
        if held and sequence in held:
            held.remove(sequence)
            if not held:
                del self._held[sequence.request.request_id]
