"""What is said of experts in statuses and metrics."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertFigures:
    """How evenly ranks' experts are loaded, and what was done about it."""

    imbalance: dict[int, float] = field(default_factory=dict)  # by layer, of late: the heaviest rank over the mean
    replacements: int = 0  # layers whose experts went elsewhere
    moves: int = 0  # experts that ranks read for that
    stopped: bool = False  # a rank could not read one: they stay where they are

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> "ExpertFigures":
        """From JSON, whose keys are text."""
        return cls(**{**values, "imbalance": {int(layer): each for layer, each in values["imbalance"].items()}})
