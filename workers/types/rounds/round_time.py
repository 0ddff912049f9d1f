"""The time of a round, compared with its modelled time without drafts."""

from typing import NamedTuple


class RoundTiming(NamedTuple):
    """A round's time, drafting included, and its modelled time without drafts (0: unknown)."""

    took_s: float = 0.0
    undrafted_s: float = 0.0

    def saved_s(self, tokens: int) -> float:
        """Time saved for a sequence that gained `tokens`; negative: lost."""
        return tokens * self.undrafted_s - self.took_s if self.undrafted_s > 0 else 0.0
