"""What the benchmark of speculation makes of its runs."""

import random

import pytest

from benchmarks.common.repeats import paired
from benchmarks.common.timed_batches import Decoded
from benchmarks.speculation.changing_load import Busy, hourly_rates, luckiest_by_hour
from benchmarks.speculation.constant_load import arm_figures, over_best
from benchmarks.speculation.depth_arms import against, params, verdict
from benchmarks.speculation.policy_time import ASKED, KEPT, REMADE, TOTAL, decision_us
from outrider.workers.types.requests.request import FinishReason, SequenceChunk


def decoded(rounds: int, drafted: tuple[int, ...], accepted: tuple[int, ...]) -> Decoded:
    return Decoded(
        first_s=0.1, rest_s=1.0, each_s=2.0, tokens=rounds + sum(accepted), rounds=rounds, drafted=sum(drafted),
        accepted=sum(accepted), drafted_at=drafted, accepted_at=accepted,
    )  # fmt: skip


def test_acceptance_is_by_position_over_all_runs() -> None:
    figures = arm_figures([decoded(10, (10, 10, 0), (8, 4, 0)), decoded(10, (10, 5, 0), (6, 2, 0))], [14.0, 12.0])

    assert figures["acceptance_per_position"] == pytest.approx([14 / 20, 6 / 15])
    assert figures["mean_depth"] == pytest.approx(35 / 20)
    assert figures["tokens_per_second"] == 13.0


def test_auto_is_held_against_the_best_static_depth_off_among_them() -> None:
    arms = {"off": 100.0, "3": 150.0, "auto": 165.0}

    assert against(arms) == pytest.approx({"best_static": "3", "auto_over_best": 1.1, "auto_over_off": 1.65})
    assert against({"off": 1.0})["auto_over_best"] is None


def test_an_arm_is_a_depth_or_off_or_auto_or_a_drafter_that_auto_has_alone() -> None:
    asked = {arm: params(arm, 0.8, 8, 1) for arm in ("off", "3", "auto", "lookup")}

    assert {arm: one.speculation for arm, one in asked.items()} == {
        "off": "off",
        "3": 3,
        "auto": "auto",
        "lookup": "auto",
    }
    assert asked["lookup"].drafter == "lookup"
    assert against({"off": 100.0, "lookup": 900.0, "auto": 110.0})["best_static"] == "off"


def test_the_luckiest_of_depths_that_are_alike_does_not_pass_for_the_best() -> None:
    rng = random.Random(0)
    rates = {arm: [100.0 * rng.uniform(0.8, 1.25) for _ in range(41)] for arm in ("off", *"12345", "auto")}
    luckiest = against(paired(rates, "off"))["auto_over_best"]
    better = over_best({**rates, "3": [1.5 * rate for rate in rates["3"]]})

    assert luckiest < 0.95
    assert luckiest < over_best(rates) == pytest.approx(1.0, abs=0.05)
    assert better == pytest.approx(1 / 1.5, rel=0.05)
    assert over_best({"off": [1.0], "1": [2.0]}) is None
    lucky = {"off": [1.0, 1.0, 2.0, 2.0], "1": [2.0, 2.0, 1.0, 1.0], "auto": [2.0] * 4}  # each in one repeat's engines
    assert over_best(lucky, turns=2) == 2.0
    assert over_best({"off": [1.0], "1": [2.0], "auto": [1.0]}) == 0.5


def test_only_seconds_in_which_something_runs_count() -> None:
    now = [0.0]
    busy = Busy(clock=lambda: now[0])
    for begin, end in ((1.0, 3.0), (10.0, 10.5)):
        now[0] = begin
        busy.begin()
        busy.begin()
        for finished in (end - 0.1, end):
            now[0] = finished
            busy([SequenceChunk(request_id="r", token_ids=(1, 2), finish_reason=FinishReason.LENGTH)])

    assert busy.seconds == pytest.approx(2.5)
    assert busy.tokens == 8
    busy.wait(0.0)


def test_an_error_is_told_to_who_waits() -> None:
    busy = Busy()
    busy.begin()
    busy([SequenceChunk(request_id="r", error="the rank is gone")])

    with pytest.raises(RuntimeError, match="the rank is gone"):
        busy.wait(1.0)


def test_a_day_rises_to_its_peak_and_falls_again() -> None:
    rates = hourly_rates(10.0, 6)

    assert rates == pytest.approx(rates[::-1])
    assert rates[0] < rates[1] < rates[2] <= 10.0


def test_the_luckiest_by_hour_is_chosen_among_static_depths() -> None:
    morning = {
        "off": Busy(tokens=100, seconds=2.0),
        "2": Busy(tokens=100, seconds=1.0),
        "auto": Busy(tokens=9, seconds=0.1),
    }
    noon = {
        "off": Busy(tokens=300, seconds=1.0),
        "2": Busy(tokens=300, seconds=2.0),
        "auto": Busy(tokens=9, seconds=0.1),
    }
    silent = {arm: Busy() for arm in noon}

    assert luckiest_by_hour([morning, silent, noon]) == pytest.approx(200.0)


def test_a_verdict_says_what_there_was_to_win_in_a_day() -> None:
    found = against({"off": 80.0, "2": 100.0, "auto": 90.0})
    told = "auto 0.90 of the best static depth (2), 1.12 of off"

    assert verdict(found) == told
    day = verdict({**found, "luckiest_by_hour_over_best": 1.02})
    assert day == f"{told} (the luckiest static depth of each hour: 1.02 of the best)"


def test_every_part_of_a_decision_is_timed() -> None:
    took = decision_us(2, rounds=60, tokens=64)

    assert set(took) == {ASKED, REMADE, KEPT, TOTAL}
    assert all(us > 0 for us in took.values())
    assert took[TOTAL] < took[ASKED] + took[REMADE] + took[KEPT]
