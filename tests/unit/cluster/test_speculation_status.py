"""What status shows of a replica's speculation."""

import pytest

from outrider.cluster.cli_status import speculation_line
from outrider.cluster.controller_service import speculation_to_wire
from outrider.cluster.status import SpeculationStatus, speculation_from_wire
from outrider.workers.types.counters import EngineCounters, SpeculationFigures

COUNTERS = EngineCounters(
    accepted_per_position=[80, 30, *[0] * 14],
    drafted_per_position=[100, 60, *[0] * 14],
    speculation=SpeculationFigures(
        price=940.0,
        gain=1.62,
        ledger=5.25,
        depth=1.6,
        forecast_error=0.08,
        alarms={"position_dead": 0, "drafter_failed": 2},
    ),
)


def test_it_comes_through_the_wire_whole() -> None:
    status = speculation_from_wire(speculation_to_wire(COUNTERS))

    assert status.acceptance == pytest.approx([0.8, 0.5])
    assert (status.price, status.gain, status.ledger, status.depth) == (940.0, 1.62, 5.25, 1.6)
    assert status.forecast_error == pytest.approx(0.08)
    assert not status.stopped
    assert status.alarms == {"position_dead": 0, "drafter_failed": 2}


def test_one_line_tells_gain_depth_price_ledger_acceptance_and_alarms() -> None:
    line = speculation_line(speculation_from_wire(speculation_to_wire(COUNTERS)))

    assert line == (
        "speculation: 1.62 x off, depth 1.6, price 940 tokens/s, ledger 5.2 rounds, accepted at 1.. 0.80 0.50 "
        "[red]alarms: drafter_failed x2[/]"
    )


def test_what_a_fixed_depth_gains_is_not_known_and_not_told() -> None:
    line = speculation_line(SpeculationStatus(depth=2.0, drafted_per_position=(10, 10), accepted_per_position=(7, 5)))

    assert line == "speculation: depth 2.0, accepted at 1.. 0.70 0.50"


def test_it_says_when_the_ledger_is_empty() -> None:
    assert "stopped, the ledger is empty" in speculation_line(SpeculationStatus(stopped=True))
