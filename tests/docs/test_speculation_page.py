"""docs/speculation.md: short, and right about the numbers of the budget, the words of status and the metrics."""

import re

from docs.commands import DOCS

from outrider.cluster.api.status import SpeculationStatus
from outrider.cluster.cli.commands.status import speculation_line
from outrider.workers.depth import budget
from outrider.workers.serving.observability.metrics import DEPRECATED, speculation_gauges
from outrider.workers.types.counters import EngineCounters

PAGE = (DOCS / "speculation.md").read_text()
_ROW = re.compile(r"^\| (?P<names>`[A-Z_]+`(?:, `[A-Z_]+`)*) \| (?P<values>[0-9., ]+) \|", re.M)


def test_it_is_read_in_one_sitting() -> None:
    assert len(PAGE.splitlines()) <= 80


def test_its_numbers_are_those_of_the_budget() -> None:
    said = {
        name.strip("`"): float(value)
        for row in _ROW.finditer(PAGE)
        for name, value in zip(row["names"].split(", "), row["values"].split(", "), strict=True)
    }

    assert len(said) >= 6
    assert said == {name: getattr(budget, name) for name in said}


def test_its_examples_are_lines_that_status_shows() -> None:
    shown = SpeculationStatus(
        setting="auto",
        speedup=1.62,
        draft_depth=2.8,
        acceptance_rate=0.71,
        mean_accepted_length=3.0,
        drafted_per_position=(1,),
    )
    disabled = SpeculationStatus(
        setting="auto", disabled_rounds=41, disabled_reason="drafts cost more than they bring", budget=0.2
    )
    lookup = SpeculationStatus(setting="auto", drafters=("lookup",))

    for status in (shown, disabled, lookup, SpeculationStatus(setting="off")):
        assert speculation_line(status) in PAGE.splitlines()


def test_it_names_every_gauge_that_is_not_deprecated() -> None:
    gauges = speculation_gauges(EngineCounters()).keys() - DEPRECATED.keys()

    assert [name for name in gauges if f"`{name.removeprefix('outrider_spec_decode_')}`" not in PAGE] == []
