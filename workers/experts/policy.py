"""When experts are worth moving. Pure: loads and a placement in, a placement out."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from outrider.workers.experts.packing import FloatArray
from outrider.workers.experts.placement import ExpertPlacement, IntArray
from outrider.workers.experts.placing import ExpertLayout, imbalance, place_experts


@dataclass(frozen=True, slots=True, kw_only=True)
class BalancePolicy:
    """Bounds of what is done about uneven ranks; the heaviest over the mean says how uneven a layer's are."""

    report_every: int = 100  # rounds
    window: int = 10  # reports that count
    step_every: int = 3000  # rounds between two looks at all layers
    enabled: bool = True  # else loads are counted, and nothing moves
    uneven: float = 1.1  # a layer below is left as it is
    least_gain: float = 0.03  # by which it must become more even
    least_rows: int = 32  # an expert, in the window: fewer say little
    most_moves: int = 64  # experts that ranks read after one look, a rank on average

    @classmethod
    def of(cls, *, enabled: bool, window_size: int, step_interval: int) -> "BalancePolicy":
        """`window_size` and `step_interval` in rounds."""
        reports = min(10, window_size)
        return cls(enabled=enabled, report_every=window_size // reports, window=reports, step_every=step_interval)


def uneven_layers(loads: IntArray, placement: ExpertPlacement, policy: BalancePolicy) -> list[int]:
    """Rows of `loads` [layers, experts] that are worth a look, the most uneven first."""
    found = imbalance(loads.astype(np.float64), placement)
    enough = loads.sum(axis=1) >= policy.least_rows * loads.shape[1]
    return [int(row) for row in np.argsort(-found, kind="stable") if enough[row] and found[row] > policy.uneven]


def better_table(
    loads: IntArray, table: IntArray, layout: ExpertLayout, policy: BalancePolicy, moves_left: int
) -> IntArray | None:
    """One layer's experts placed anew for `loads` [experts], with few moves from `table` [ranks, slots per rank].

    None if that gains too little, or takes more than `moves_left`.
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
    """Experts that ranks read to come from one table of a layer to another."""
    return ExpertPlacement(after[None], experts).moves_from(ExpertPlacement(before[None], experts))


def as_placement(tables: Iterable[IntArray], experts: int) -> ExpertPlacement:
    return ExpertPlacement(np.stack(list(tables)), experts)
