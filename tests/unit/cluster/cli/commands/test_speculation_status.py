"""What status shows of a replica's speculation."""

from dataclasses import replace

import pytest

from outrider.cluster.api.status import SpeculationStatus, speculation_from_wire
from outrider.cluster.cli.commands.status import speculation_line
from outrider.cluster.controller.service import speculation_to_wire
from outrider.workers.engine.handle import EngineInfo
from outrider.workers.types.counters import EngineCounters, SpeculationFigures

INFO = EngineInfo(
    fingerprint="f", max_model_len=64, vocab_size=100, dtype="float32", numerics="exact",
    speculation="auto", has_mtp=True,
)  # fmt: skip
COUNTERS = EngineCounters(
    drafts=100,
    drafted=160,
    accepted=110,
    accepted_per_position=[80, 30, *[0] * 14],
    drafted_per_position=[100, 60, *[0] * 14],
    speculation=SpeculationFigures(
        price=940.0,
        speedup=1.62,
        budget=5.25,
        draft_depth=1.6,
        alarms={"position_dead": 0, "drafter_failed": 2},
    ),
)
STATUS = SpeculationStatus(
    setting="auto",
    drafters=("mtp", "lookup"),
    has_mtp=True,
    speedup=1.62,
    draft_depth=2.8,
    acceptance_rate=0.714,
    mean_accepted_length=3.0,
    price=940.0,
    budget=5.25,
    drafted_per_position=(100, 80, 100),
    accepted_per_position=(90, 60, 50),
)


def test_it_comes_through_the_wire_whole() -> None:
    disabled = replace(COUNTERS.speculation, disabled_rounds=41, disabled_reason="why")
    status = speculation_from_wire(speculation_to_wire(replace(COUNTERS, speculation=disabled), INFO))

    assert status == SpeculationStatus(
        setting="auto",
        drafters=("mtp", "lookup"),
        has_mtp=True,
        speedup=1.62,
        draft_depth=1.6,
        acceptance_rate=pytest.approx(110 / 160),
        mean_accepted_length=2.1,
        price=940.0,
        budget=5.25,
        disabled_rounds=41,
        disabled_reason="why",
        drafted_per_position=(100, 60, *[0] * 14),
        accepted_per_position=(80, 30, *[0] * 14),
        alarms={"position_dead": 0, "drafter_failed": 2},
    )
    assert status.drafts == 100


def test_a_replica_that_loads_has_no_setting_yet() -> None:
    status = speculation_from_wire(speculation_to_wire(EngineCounters(), None))

    assert (status.setting, status.drafters, status.drafts) == ("", (), 0)


def test_one_line_tells_speed_up_draft_depth_acceptance_rate_and_mean_accepted_length() -> None:
    assert speculation_line(STATUS) == (
        "speculation: 1.62x speed-up, draft depth 2.8, acceptance rate 71%, mean accepted length 3.0"
    )


def test_alarms_stand_behind_it() -> None:
    alarms = {"position_dead": 0, "drafter_failed": 2}

    assert speculation_line(replace(STATUS, alarms=alarms)).endswith("length 3.0 [red]alarms: drafter_failed x2[/]")


def test_the_speed_up_of_a_fixed_depth_is_not_known_and_not_shown() -> None:
    fixed = replace(STATUS, setting="3", speedup=0.0, price=0.0, budget=0.0)

    assert speculation_line(fixed) == ("speculation: draft depth 2.8, acceptance rate 71%, mean accepted length 3.0")


def test_while_drafting_is_disabled_it_says_for_how_long_and_why() -> None:
    disabled = replace(STATUS, disabled_rounds=41, disabled_reason="drafts cost more than they bring", budget=0.2)

    assert speculation_line(disabled) == (
        "speculation: disabled for 41 more rounds: drafts cost more than they bring (budget 0.2 rounds)"
    )
    assert "disabled for 1 more round:" in speculation_line(replace(disabled, disabled_rounds=1))


def test_an_engine_that_is_set_to_off_says_so() -> None:
    off = SpeculationStatus(setting="off", has_mtp=True)

    assert speculation_line(off) == "speculation: off (engine setting)"


@pytest.mark.parametrize(("has_mtp", "reason"), [(False, "no MTP weights"), (True, "engine setting")])
def test_an_engine_without_a_model_that_drafts_says_why(has_mtp: bool, reason: str) -> None:
    lookup = SpeculationStatus(setting="auto", drafters=("lookup",), has_mtp=has_mtp)

    assert speculation_line(lookup) == f"speculation: no drafts yet, prompt lookup only ({reason})"
