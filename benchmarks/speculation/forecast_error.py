"""How far the depth policy's forecasts are from what happens, over recorded texts and rounds (recordings/).

    python benchmarks/speculation/forecast_error.py

The mean error of a round's forecast, of rounds that nothing was learned from, and the expected calibration error of
drafts' chances, each draft judged before it taught anything.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository's root, where `benchmarks` is
from benchmarks.common.results import save
from benchmarks.speculation.recorders import ROUND_COLUMNS
from benchmarks.speculation.simulated_depths import KINDS, OTHERS, recorded_rounds, recorded_texts
from benchmarks.speculation.simulation import Text
from outrider.workers.depth.acceptance import Acceptance, MadeDrafts
from outrider.workers.depth.round_time import RoundTime, Shape

_SETTLED = 400  # rounds that are learned from before any is held out
_HELD_OUT = 4  # every so many


def forecast_error() -> float:
    """Mean absolute share by which the time of held-out rounds is forecast wrongly.

    In the order in which they ran, which tells how the machine's speed changes too.
    """
    time, errors = RoundTime((8, 2)), []
    for number, row in enumerate(recorded_rounds()):
        values = dict(zip(ROUND_COLUMNS, row.tolist(), strict=True))
        shape = Shape(
            int(values["sequences"]), int(values["rows"]), values["context"], values["rows_context"],
            int(values["rows"]), int(values["steps"]), int(values["drafts"]), int(values["drafts"]),
            int(values["followed"]),
        )  # fmt: skip
        took = values["round_s"] + values["draft_s"]
        if number % _HELD_OUT == 0 and number > _SETTLED:
            errors.append(abs(time.forecast_s(shape) - took) / took)
        else:
            time.observe(shape, values["round_s"], values["draft_s"])
    return float(np.mean(errors))


def calibration_error() -> float:
    """How far chances are from what became of the drafts, expected over ten equal ranges of chance."""
    acceptance, believed, came = Acceptance(8), list[float](), list[bool]()
    texts = [text for kind in (*KINDS, *OTHERS) for text in recorded_texts(kind)]
    for number in np.random.default_rng(0).permutation(len(texts)).tolist():
        _judge(acceptance, number, texts[number], believed, came)
        acceptance.forget(number)
    return _calibration_error(np.array(believed), np.array(came, dtype=float))


def _judge(acceptance: Acceptance, number: int, text: Text, believed: list[float], came: list[bool]) -> None:
    """Adds the chance of each draft of a text that was judged, and what came of it."""
    place = 0
    while place < len(text.places):
        accepted, leads = text.places[place]
        survivals = acceptance.evaluate_one(MadeDrafts(number, text.kind, leads))
        judged = min(len(leads), accepted + 1)
        believed += [own / before for own, before in zip(survivals[:judged], [1.0, *survivals], strict=False)]
        came += [n < accepted for n in range(judged)]
        acceptance.observe(MadeDrafts(number, text.kind, leads), judged, accepted, usual=True)
        place += accepted + 1


def _calibration_error(believed: np.ndarray, came: np.ndarray) -> float:
    ranges = np.minimum((believed * 10).astype(int), 9)
    parts = [(ranges == n) for n in range(10) if (ranges == n).any()]
    return float(sum(part.mean() * abs(believed[part].mean() - came[part].mean()) for part in parts))


def main() -> None:
    found = {"forecast_error": forecast_error(), "calibration_error": calibration_error()}
    print(f"held-out rounds are forecast {found['forecast_error']:.1%} wrongly in the mean")
    print(f"expected calibration error of drafts' chances: {found['calibration_error']:.3f}")
    print("written to", save("forecast-error", "benchmarks/speculation/forecast_error.py", found))


if __name__ == "__main__":
    main()
