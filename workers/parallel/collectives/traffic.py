"""Counters of a group's collectives. Torch-free, since rank statuses contain them."""

from dataclasses import dataclass


@dataclass(slots=True)
class Traffic:
    """The collectives of one purpose since the group was created."""

    count: int = 0
    bytes: int = (
        0  # sent by this rank: its part of a gather, rows for other ranks in an exchange (DeepEP: received bytes)
    )
    seconds: float = 0.0  # waiting included

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.count + other.count, self.bytes + other.bytes, self.seconds + other.seconds)
