"""The load that gateways report to the controller, and that replicas have."""

from collections.abc import Iterable
from dataclasses import dataclass

REPORT_EVERY_S = 0.5  # gateways say what waits there


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The work of replicas, or what waits at gateways for room."""

    tokens: int = 0  # of unfinished sequences, prompt and output
    sequences: int = 0  # running
    oldest_wait_s: float = 0.0  # longest that a request has waited for its first token

    @classmethod
    def total(cls, loads: Iterable["Load"]) -> "Load":
        each = list(loads)
        return cls(
            tokens=sum(load.tokens for load in each),
            sequences=sum(load.sequences for load in each),
            oldest_wait_s=max((load.oldest_wait_s for load in each), default=0.0),
        )
