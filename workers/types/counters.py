"""An engine's counters and gauges, as status and metrics show them; also those of speculation and experts."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertFigures:
    """How evenly experts' load is spread over ranks, and how many experts were moved."""

    imbalance: dict[int, float] = field(default_factory=dict)  # by layer, recent: load of the busiest rank / mean
    replacements: int = 0  # layers whose experts were moved
    moves: int = 0  # experts that ranks read for these moves
    stopped: bool = False  # a rank could not read an expert, so no more are moved

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> "ExpertFigures":
        """From JSON, whose keys are strings."""
        return cls(**{**values, "imbalance": {int(layer): each for layer, each in values["imbalance"].items()}})


@dataclass(slots=True)
class SpeculationFigures:
    """Recent speculation figures. Speed-up, price and budget are 0 if unknown, as with a fixed depth."""

    speedup: float = 0.0  # tokens/s / tokens/s without speculation
    draft_depth: float = 0.0  # verified drafts per sequence and round
    price: float = 0.0  # tokens per second that drafts must exceed
    budget: float = 0.0  # plain rounds (without speculation) whose time drafting may still lose
    disabled_rounds: int = 0  # until drafting is enabled again; 0: it is enabled
    disabled_reason: str = ""  # why it is disabled
    alarms: dict[str, int] = field(default_factory=dict)  # count by kind


@dataclass(slots=True)
class EngineCounters:
    """Running totals and gauges of one engine. Read by status and metrics; written by the engine's thread only."""

    running: int = 0
    waiting: int = 0
    tokens: int = 0  # of unfinished sequences, prompt and output
    oldest_wait_s: float = 0.0  # longest present wait of a live request for its first token
    rounds: int = 0
    kv_cache_usage: float = 0.0  # 0..1
    drafted: int = 0
    accepted: int = 0
    generated_tokens: int = 0
    prefix_queries: int = 0  # tokens looked up
    prefix_hits: int = 0  # tokens found
    drafts: int = 0  # draft sequences verified (rounds with at least one draft)
    accepted_per_position: list[int] = field(default_factory=lambda: [0] * 16)
    drafted_per_position: list[int] = field(default_factory=lambda: [0] * 16)
    speculation: SpeculationFigures = field(default_factory=SpeculationFigures)
    experts: ExpertFigures = field(default_factory=ExpertFigures)

    @property
    def acceptance_rate(self) -> float:
        """Accepted drafts over verified ones, since the engine started; 0 before the first draft."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def mean_accepted_length(self) -> float:
        """Mean tokens per sequence in a round that verifies its drafts; 0 before the first draft."""
        return 1.0 + self.accepted / self.drafts if self.drafts else 0.0
