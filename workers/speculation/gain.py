"""What speculation gains at present, by the number of sequences: told, and the less it is the closer watched. Pure."""

_KEEP = 0.97  # of what was seen, when a round is added
_SETTLING = 8.0  # rounds that a new number of sequences is believed to go as its neighbours do


class Gain:
    """How many undrafted rounds' worth of tokens a round brings, over how many it takes: the gain of speculation."""

    def __init__(self) -> None:
        self._sums: dict[int, tuple[float, float, float]] = {}  # by size class: weight, tokens a sequence, time

    def observe(self, sequences: int, tokens: float, took: float, rounds: int = 1) -> None:
        """Of so many decoding rounds, that took as long as `took` rounds without drafts."""
        size = size_class(sequences)
        weight, gained, taken = self._sums.get(size, (0.0, 0.0, 0.0))
        if not weight:
            gain = self.of(sequences)
            weight, gained, taken = _SETTLING, _SETTLING * gain, _SETTLING
        keep = _KEEP**rounds
        each = (1.0 - keep) / ((1.0 - _KEEP) * rounds)  # of a round's weight when the last of them is over
        self._sums[size] = (
            weight * keep + each * rounds,
            gained * keep + each * tokens / sequences,
            taken * keep + each * took,
        )

    def of(self, sequences: int) -> float:
        """Speed over that without speculation, at least 1: there is always the choice not to draft."""
        if not self._sums:
            return 1.0
        wanted = size_class(sequences)
        if wanted not in self._sums:
            wanted = min(self._sums, key=lambda size: abs(size - wanted))
        _, gained, taken = self._sums[wanted]
        return max(1.0, gained / taken)


def size_class(sequences: int) -> int:
    """Numbers of sequences of one class share their estimates: 1, 2, 3-4, 5-8, and so on."""
    return max(sequences - 1, 0).bit_length()
