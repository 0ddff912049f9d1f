"""How long a round took, beside what it would have without drafts."""

from typing import NamedTuple


class RoundTiming(NamedTuple):
    """What a round took with its drafts and their making, and what one without would have, as modelled (0: unknown)."""

    took_s: float = 0.0
    undrafted_s: float = 0.0

    def saved_s(self, tokens: int) -> float:
        """Of a sequence that gained `tokens`; below 0: lost."""
        return tokens * self.undrafted_s - self.took_s if self.undrafted_s > 0 else 0.0
