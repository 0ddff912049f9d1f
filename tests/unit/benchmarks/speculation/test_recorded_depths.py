"""Depths by the price of time over what scout's texts drafted and what its rounds took."""

import math
from statistics import mean

import numpy as np
import pytest

from benchmarks.speculation.forecast_error import calibration_error, forecast_error
from benchmarks.speculation.simulated_depths import KINDS, OTHERS, machine, settled_speed, whole_speed
from benchmarks.speculation.simulation import Auto, Static, VaryingSpeed

BATCHES, SEEDS, DEPTHS = (1, 4, 16), range(2), range(6)


def over(kind: str, batch: int) -> tuple[float, float]:
    """Auto over the best static depth, and over off."""
    static = [settled_speed(Static(depth), kind, batch) for depth in DEPTHS]
    auto = mean(settled_speed(Auto(), kind, batch, seed) for seed in SEEDS)
    return auto / max(static), auto / static[0]


@pytest.mark.parametrize("kinds", [KINDS, pytest.param((*KINDS, *OTHERS), marks=pytest.mark.full)], ids=["four", "all"])
def test_auto_is_faster_than_the_best_static_depth_and_nowhere_slower_than_off(kinds: tuple[str, ...]) -> None:
    found = {(kind, batch): over(kind, batch) for kind in kinds for batch in BATCHES}
    of_best = [of_best for of_best, _ in found.values()]

    assert {cell: ratios for cell, ratios in found.items() if ratios[0] < 0.93 or ratios[1] < 0.98} == {}
    assert math.exp(mean(map(math.log, of_best))) >= 1.02


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("kind", [KINDS[0], KINDS[3], *(pytest.param(k, marks=pytest.mark.full) for k in KINDS[1:3])])
def test_a_machine_that_turns_slower_and_faster_neither_disables_drafts_that_pay_nor_makes_others_seem_to(
    kind: str, batch: int
) -> None:
    """From the first round on: what is lost until something is known counts."""
    static = [whole_speed(Static(depth), machine(), kind, batch) for depth in DEPTHS]

    autos = [whole_speed(Auto(), VaryingSpeed(machine(), seed), kind, batch, seed) for seed in range(4)]

    assert np.mean(autos) >= 0.92 * max(static)
    assert np.mean(autos) >= 0.96 * static[0]
    assert min(autos) >= 0.80 * max(static)


def test_chances_of_acceptance_are_what_becomes_of_drafts() -> None:
    assert calibration_error() <= 0.03


def test_the_time_of_rounds_that_were_held_out_is_forecast_within_a_tenth() -> None:
    assert forecast_error() <= 0.10
