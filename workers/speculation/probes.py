"""Which rounds try another depth than the one that seems best, and which. Decides by expected loss alone."""

from collections.abc import Mapping, Sequence

_EXPLORATION = 0.01  # share of the tokens that may be lost to probes
_GAP = 12  # rounds between two probes, at least


class Probes:
    """Single rounds one step deeper, without drafts, and one step shallower, in turn, as often as loss allows."""

    def __init__(self, depths: tuple[int, ...]) -> None:
        self._depths = depths
        self._turns = [1, -len(depths), 1, -1]  # steps along the depths
        self._shift = 0  # of the next round
        self._rounds = 0  # since the last probe
        self._credit = 0.0  # rounds' worth of tokens that may be lost

    def moved(self, depth: int) -> int:
        """The depth in place of `depth`, in the next round."""
        return self._at(depth, self._shift)

    def plan(self, usual: int, seconds: Mapping[int, float], tokens: Sequence[float], *, allowed: bool) -> None:
        """Decides whether the next round is a probe. `seconds` and expected `tokens` of a round are by depth."""
        self._shift = 0
        self._credit += _EXPLORATION
        self._rounds += 1
        if self._rounds < _GAP or not allowed:
            return
        turn = self._turns[0]
        other = self._at(usual, turn)
        loss = max(0.0, seconds[other] / seconds[usual] - tokens[other] / tokens[usual])
        if loss > self._credit:
            return
        self._turns = [*self._turns[1:], turn]
        if other != usual:
            self._shift, self._rounds = turn, 0
            self._credit = min(self._credit - loss, _EXPLORATION * _GAP)

    def _at(self, depth: int, shift: int) -> int:
        index = self._depths.index(depth) + shift
        return self._depths[min(max(index, 0), len(self._depths) - 1)]
