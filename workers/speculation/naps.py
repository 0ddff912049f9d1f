"""Rounds that speculation has no part in, and that are not looked at one by one, which would slow them. Pure."""

from outrider.workers.speculation.known_times import Shape


class Naps:
    """Of rounds without drafts in a row, of as many sequences."""

    def __init__(self) -> None:
        self._left = 0
        self._first = Shape(0, 0, 0.0, 0.0)
        self._took_s: list[float] = []

    def begin(self, rounds: int, first: Shape) -> None:
        """So many rounds from now on may go by, of which the `first` is like this."""
        self._left, self._first, self._took_s = rounds, first, []

    def add(self, sequences: int, round_s: float) -> bool:
        """Whether this round goes by."""
        if not self._left or sequences != self._first.sequences:
            return False
        self._left -= 1
        self._took_s.append(round_s)
        return True

    def end(self) -> list[tuple[Shape, float]]:
        """What went by: each round's shape, a token longer than the one before, and its seconds."""
        first, took_s = self._first, self._took_s
        self._left, self._took_s = 0, []
        contexts = [first.context + number * first.sequences for number in range(len(took_s))]
        shapes = [Shape(first.sequences, first.rows, context, context) for context in contexts]
        return list(zip(shapes, took_s, strict=True))
