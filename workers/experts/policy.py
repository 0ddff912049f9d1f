"""Decides when moving experts is worthwhile. Pure: loads and a placement in, a placement out."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from outrider.workers.experts.packing import FloatArray
from outrider.workers.experts.placement import ExpertPlacement, IntArray
from outrider.workers.experts.placing import ExpertLayout, imbalance, place_experts


@dataclass(frozen=True, slots=True, kw_only=True)
class BalancePolicy:
    """Thresholds for moving experts. A layer's imbalance is the heaviest rank's load over the mean."""

    report_every: int = 100  # rounds
    window: int = 10  # reports
    step_every: int = 3000  # rounds between two checks of all layers
    enabled: bool = True  # False: loads are counted, but experts do not move
    uneven: float = 1.1  # layers with less imbalance are not changed
    least_gain: float = 0.03  # least decrease of the imbalance
    least_rows: int = 32  # per expert, in the window: with fewer, loads are too noisy
    most_moves: int = 64  # experts that a rank reads after one check, on average

    @classmethod
    def of(cls, *, enabled: bool, window_size: int, step_interval: int) -> "BalancePolicy":
        """`window_size` and `step_interval` in rounds."""
        reports = min(10, window_size)
        return cls(enabled=enabled, report_every=window_size // reports, window=reports, step_every=step_interval)


def uneven_layers(loads: IntArray, placement: ExpertPlacement, policy: BalancePolicy) -> list[int]:
    """Rows of `loads` [layers, experts] with a high imbalance and enough load, the most imbalanced first."""
    found = imbalance(loads.astype(np.float64), placement)
    enough = loads.sum(axis=1) >= policy.least_rows * loads.shape[1]
    return [int(row) for row in np.argsort(-found, kind="stable") if enough[row] and found[row] > policy.uneven]


def better_table(
    loads: IntArray, table: IntArray, layout: ExpertLayout, policy: BalancePolicy, moves_left: int
) -> IntArray | None:
    """A new placement of one layer for `loads` [experts], with few moves from `table` [ranks, slots per rank].

    None if that improves too little, or needs more than `moves_left` moves.
    """
    weights: FloatArray = loads[None].astype(np.float64)
    present = ExpertPlacement(table[None], layout.experts)
    placed = place_experts(weights, layout, present)
    gained = float((imbalance(weights, present) - imbalance(weights, placed))[0])
    if gained < policy.least_gain or placed.moves_from(present) > moves_left:
        return None
    better: IntArray = placed.experts[0]
    return better


def moves(before: IntArray, after: IntArray, experts: int) -> int:
    """How many experts ranks must read to change a layer from one table to another."""
    return ExpertPlacement(after[None], experts).moves_from(ExpertPlacement(before[None], experts))


def as_placement(tables: Iterable[IntArray], experts: int) -> ExpertPlacement:
    return ExpertPlacement(np.stack(list(tables)), experts)
