"""The load of replicas, and the waiting load that gateways report to the controller."""

from collections.abc import Iterable
from dataclasses import dataclass

REPORT_EVERY_S = 0.5  # interval of the gateways' reports


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The unfinished work of replicas, or of requests that wait at gateways."""

    tokens: int = 0  # prompt and output tokens of unfinished sequences
    sequences: int = 0  # running
    oldest_wait_s: float = 0.0  # longest wait of a request for its first token

    @classmethod
    def total(cls, loads: Iterable["Load"]) -> "Load":
        each = list(loads)
        return cls(
            tokens=sum(load.tokens for load in each),
            sequences=sum(load.sequences for load in each),
            oldest_wait_s=max((load.oldest_wait_s for load in each), default=0.0),
        )
