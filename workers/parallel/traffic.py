"""What collectives carried. Torch-free: statuses tell of it."""

from dataclasses import dataclass


@dataclass(slots=True)
class Traffic:
    """Of one purpose, since the group was made."""

    count: int = 0
    bytes: int = (
        0  # that this rank gave: its part of a gather, what went to others in an exchange (by DeepEP: what came)
    )
    seconds: float = 0.0  # waiting included

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.count + other.count, self.bytes + other.bytes, self.seconds + other.seconds)
