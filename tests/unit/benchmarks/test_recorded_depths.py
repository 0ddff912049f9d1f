"""Depths by the price of time over what scout's texts drafted and what its rounds took (benchmarks/recordings)."""

import itertools

import numpy as np
import pytest
from beliefs import calibration_error, forecast_error
from simulated import KINDS, OTHERS, machine, settled_speed, whole_speed
from simulation import Auto, Moody, Static

MOODY = (("code, T=0.8", 1), ("adversarial, T=2", 1))  # in `make test`: where drafts pay, and where they do not


@pytest.mark.parametrize("batch", [1, 4, 16])
@pytest.mark.parametrize("kind", [*KINDS, *(pytest.param(kind, marks=pytest.mark.full) for kind in OTHERS)])
def test_auto_keeps_up_with_the_best_static_depth(kind: str, batch: int) -> None:
    static = [settled_speed(Static(depth), kind, batch) for depth in range(6)]

    auto = settled_speed(Auto(), kind, batch)

    assert auto >= 0.97 * max(static)
    assert auto >= 0.98 * static[0]


@pytest.mark.parametrize(
    ("kind", "batch"),
    [
        pytest.param(kind, batch, marks=[] if (kind, batch) in MOODY else pytest.mark.full)
        for kind, batch in itertools.product(KINDS, (1, 4, 16))
    ],
)
def test_a_machines_moods_neither_stop_drafts_that_pay_nor_make_others_seem_to(kind: str, batch: int) -> None:
    """From the first round on: what is lost until something is known counts."""
    static = [whole_speed(Static(depth), machine(), kind, batch) for depth in range(6)]

    autos = [whole_speed(Auto(), Moody(machine(), seed), kind, batch, seed) for seed in range(6)]

    assert np.mean(autos) >= 0.94 * max(static)
    assert np.mean(autos) >= (0.94 if batch == 16 else 0.96) * static[0]
    assert min(autos) >= 0.80 * max(static)


def test_what_is_believed_of_drafts_is_what_becomes_of_them() -> None:
    assert calibration_error() <= 0.03


def test_the_time_of_rounds_that_were_held_out_is_forecast_within_a_tenth() -> None:
    assert forecast_error() <= 0.10
