"""Depths by the price of time over what scout's texts drafted and what its rounds took (benchmarks/recordings)."""

import itertools

import numpy as np
import pytest
from recorders import ROUND_COLUMNS
from simulated import KINDS, OTHERS, machine, recorded_rounds, recorded_texts, settled_speed, whole_speed
from simulation import Auto, Moody, Static

from outrider.workers.speculation.acceptance import Acceptance, Made
from outrider.workers.speculation.cost import RoundCost
from outrider.workers.speculation.known_times import Shape

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
    """Expected calibration error over ten equal ranges of belief, each draft judged before it taught anything."""
    acceptance, believed, came = Acceptance(8), [], []
    texts = [text for kind in (*KINDS, *OTHERS) for text in recorded_texts(kind)]
    for number in np.random.default_rng(0).permutation(len(texts)).tolist():
        place, text = 0, texts[number]
        while place < len(text.places):
            accepted, leads = text.places[place]
            survivals = acceptance.judged([Made(number, text.kind, leads)])[0]
            judged = min(len(leads), accepted + 1)
            chances = survivals[:judged] / np.concatenate([[1.0], survivals[: judged - 1]])
            believed += chances.tolist()
            came += [n < accepted for n in range(judged)]
            acceptance.observe([(acceptance.take([number])[number], judged, accepted, True)])
            place += accepted + 1
        acceptance.forget(number)

    assert calibration_error(np.array(believed), np.array(came, dtype=float)) <= 0.03


def calibration_error(believed: np.ndarray, came: np.ndarray) -> float:
    ranges = np.minimum((believed * 10).astype(int), 9)
    parts = [(ranges == n) for n in range(10) if (ranges == n).any()]
    return float(sum(part.mean() * abs(believed[part].mean() - came[part].mean()) for part in parts))


def test_the_time_of_rounds_that_were_held_out_is_forecast_within_a_tenth() -> None:
    """In the order in which they ran, which tells the machine's moods too; nothing is learned of every fourth."""
    cost, errors = RoundCost((8, 2)), []
    for number, row in enumerate(recorded_rounds()):
        values = dict(zip(ROUND_COLUMNS, row.tolist(), strict=True))
        shape = Shape(
            int(values["sequences"]), int(values["rows"]), values["context"], values["rows_context"],
            int(values["steps"]), int(values["drafts"]), int(values["followed"]),
        )  # fmt: skip
        took = values["round_s"] + values["draft_s"]
        if number % 4 == 0 and number > 400:
            errors.append(abs(cost.forecast(shape).whole_s - took) / took)
        else:
            cost.observe(shape, values["round_s"], values["draft_s"])

    assert np.mean(errors) <= 0.10
