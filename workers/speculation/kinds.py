"""The live sequences whose depth follows the price of time, and what their drafts are like. Pure counting."""

from outrider.workers.speculation.acceptance import Kind


class Kinds:
    """By sequence: the kind of its drafts, by the model that made the last ones."""

    def __init__(self) -> None:
        self._kinds: dict[int, Kind] = {}
        self._heats = [0, 0, 0]  # how many of these there are by heat
        self.get = self._kinds.get

    def __len__(self) -> int:
        return len(self._kinds)

    def __contains__(self, sequence_id: int) -> bool:
        return sequence_id in self._kinds

    @property
    def heat(self) -> int:
        """Of the hottest that live: where texts of several heats share an engine, it is held to that one's floor."""
        _, drawn, hot = self._heats
        return 2 if hot else 1 if drawn else 0

    def add(self, sequence_id: int, kind: Kind) -> None:
        """A sequence that is new."""
        self._kinds[sequence_id] = kind
        self._heats[kind.heat] += 1

    def turn(self, sequence_id: int, kind: Kind) -> None:
        """Another model drafts for the sequence from now on."""
        self._kinds[sequence_id] = kind

    def forget(self, sequence_id: int) -> None:
        if (kind := self._kinds.pop(sequence_id, None)) is not None:
            self._heats[kind.heat] -= 1
